"""Triton kernels: one file per operation, each with its kernels and the launcher that ops calls.

A launcher is a torch.library.triton_op: torch.export sees the kernels inside it.
Arguments are checked in scrd_fast.ops; no launcher falls back to anything.
"""
