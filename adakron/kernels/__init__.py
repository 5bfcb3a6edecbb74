"""The hot path for CUDA: many adapters, both residuals and the LayerNorm in one launch a layer.

Proven in triton's interpreter; not yet on the engine's path, which takes `adakron.adaptation` everywhere until this has
run on a card. `tiles` is plain torch and says what a launch covers; `fused_adapter` holds the kernel and alone imports
triton. The equation in plain torch is in `adakron.adaptation`, and both are held to one oracle.
"""
