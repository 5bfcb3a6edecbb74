"""A process in which Triton's kernels run on CPU tensors.

Triton decides that when it is first imported, and adakron's dependencies import it: hence a process of its own, and a
module that imports neither before `interpret` has run.
"""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context


@contextmanager
def interpreter_process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=interpret) as pool:
        yield pool


def interpret() -> None:
    """Choose the interpreter for this process and put it right.

    It keeps a bfloat16 as its bits, multiplies those bits in `dot`, and rounds towards zero (seen in Triton 3.7). Its
    loops take no bounds out of memory: those are arrays of one number (seen in Triton 3.6 with numpy 2.4).
    """
    assert "triton" not in sys.modules
    os.environ["TRITON_INTERPRET"] = "1"
    import numpy as np
    import torch
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    torch.set_num_threads(1)
    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def widened(value):
        if value.dtype.scalar != tl.bfloat16:
            return value
        return TensorHandle((value.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def exact_dot(self, a, b, *rest):
        return dot(self, widened(a), widened(b), *rest)

    def rounding_cast(self, value, target):
        if (value.dtype.scalar, target.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, value, target)
        nearest = torch.from_numpy(np.ascontiguousarray(value.data)).bfloat16()
        return TensorHandle(nearest.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)

    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = exact_dot, rounding_cast

    patch_tensor = interpreter._patch_lang_tensor

    def with_bounds(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = with_bounds
