"""What an encoder layer does beside its linear maps, for all adapters of a batch at once, in three ways.

`interface` says what that is. `eager` is plain torch, runs everywhere and is the readable reference. `native` is C++
for CPUs, compiled where it runs by `compiler`. `cuda` is Triton for CUDA, of `fused_adapter`, `varlen_attention` and
`grouped_heads`; proven in triton's interpreter, not yet timed on a card. `tiles` cuts a batch into what the last two
work on.
"""
