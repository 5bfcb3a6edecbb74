import pytest


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """Compiles for a named card without having it: `compiler(capability)` gives the list that launches append to."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    from adakron.kernels import fused_adapter, grouped_heads, varlen_attention

    kernels = (fused_adapter._adapt_add_norm, varlen_attention._attend, grouped_heads._grouped_products)
    if not all(hasattr(kernel, "device_caches") for kernel in kernels):
        pytest.skip("TRITON_INTERPRET is set")
    compiled = []

    def target(capability: int):
        class Card:
            def get_current_target(self):
                return GPUTarget("cuda", capability, 32)

            def get_current_device(self):
                return 0

            def get_current_stream(self, device):
                return 0

        monkeypatch.setattr(driver, "_active", Card())
        return compiled

    def compile_only(kernel):
        launch = kernel.run

        def run(*args, warmup, **kwargs):
            compiled.append(launch(*args, warmup=True, **kwargs))

        return run

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kernel in kernels:
        monkeypatch.setattr(kernel, "run", compile_only(kernel))
        kernel.device_caches.clear()
    yield target
    for kernel in kernels:
        kernel.device_caches.clear()
