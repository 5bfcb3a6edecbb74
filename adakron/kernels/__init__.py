"""What an encoder layer does beside its linear maps, for all adapters of a batch at once, in three ways.

`interface` says what that is. `eager` is plain torch, runs everywhere and is the readable reference. `native` is C++
for CPUs, compiled where it runs by `compiler`. `fused_adapter` is Triton for CUDA: proven in triton's interpreter, not
yet on the engine's path. `tiles` cuts a batch into what the last two work on.
"""
