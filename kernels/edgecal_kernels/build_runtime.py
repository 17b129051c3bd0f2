"""What a ready-made library has beside kernels, so that it asks nothing of any other library.

Compiled kernels call a few functions that a process with Numba has: memory for their buffers, the C library's memset,
sched_yield and the like. Here they are, in LLVM's language. What only the system can do is done by five functions of
the C library, whose addresses the loader hands in (`edgecal_initialize`): a library that names none of them loads
beside any C library.
"""

from __future__ import annotations

LIBC = ("malloc", "free", "sched_yield", "clock_gettime", "syscall")  # in the order of `edgecal_initialize`
_FUTEX = {"x86_64": 202, "aarch64": 98}  # the number of the system call, <asm/unistd.h>
INITIALIZE = "edgecal_initialize"

_TEXT = """
@libc = internal global [{n} x ptr] zeroinitializer

define void @{initialize}(ptr %functions) nounwind {{
  call void @llvm.memcpy.p0.p0.i64(ptr @libc, ptr %functions, i64 {bytes}, i1 false)
  ret void
}}
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

define i32 @sched_yield() nounwind {{
  %f = load ptr, ptr getelementptr ([{n} x ptr], ptr @libc, i64 0, i64 2)
  %r = call i32 %f()
  ret i32 %r
}}

define i32 @clock_gettime(i32 %clock, ptr %time) nounwind {{
  %f = load ptr, ptr getelementptr ([{n} x ptr], ptr @libc, i64 0, i64 3)
  %r = call i32 %f(i32 %clock, ptr %time)
  ret i32 %r
}}

define i64 @edgecal_futex(ptr %word, i32 %operation, i32 %value) nounwind {{
  %f = load ptr, ptr getelementptr ([{n} x ptr], ptr @libc, i64 0, i64 4)
  %r = call i64 (i64, ...) %f(i64 {futex}, ptr %word, i32 %operation, i32 %value, ptr null, ptr null, i32 0)
  ret i64 %r
}}

; Numba's header of an array's memory: count of references, destructor, what it is told, data, size. 64 bytes here.
define ptr @NRT_MemInfo_alloc_aligned(i64 %size, i32 %align) nounwind {{
  %f = load ptr, ptr @libc
  %alignment = zext i32 %align to i64
  %padded = add i64 %size, %alignment
  %total = add i64 %padded, 64
  %header = call ptr %f(i64 %total)
  %failed = icmp eq ptr %header, null
  br i1 %failed, label %end, label %fill
fill:
  call void @llvm.memset.p0.i64(ptr %header, i8 0, i64 64, i1 false)
  store i64 1, ptr %header
  %after = getelementptr i8, ptr %header, i64 64
  %address = ptrtoint ptr %after to i64
  %less = sub i64 %alignment, 1
  %up = add i64 %address, %less
  %mask = sub i64 0, %alignment
  %aligned = and i64 %up, %mask
  %data = inttoptr i64 %aligned to ptr
  %data_at = getelementptr i8, ptr %header, i64 24
  store ptr %data, ptr %data_at
  %size_at = getelementptr i8, ptr %header, i64 32
  store i64 %size, ptr %size_at
  br label %end
end:
  ret ptr %header
}}
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

define void @NRT_MemInfo_call_dtor(ptr %header) nounwind {{
  %f = load ptr, ptr getelementptr ([{n} x ptr], ptr @libc, i64 0, i64 1)
  call void %f(ptr %header)
  ret void
}}

; The strides of a contiguous array in another shape: kernels have no other.
define i32 @numba_attempt_nocopy_reshape(i64 %n, ptr %dims, ptr %strides, i64 %new_n, ptr %new_dims,
                                                  ptr %new_strides, i64 %size, i32 %fortran) nounwind {{
entry:
  br label %loop
loop:
  %i = phi i64 [ %new_n, %entry ], [ %next, %body ]
  %step = phi i64 [ %size, %entry ], [ %longer, %body ]
  %done = icmp eq i64 %i, 0
  br i1 %done, label %end, label %body
body:
  %next = sub i64 %i, 1
  %place = getelementptr i64, ptr %new_strides, i64 %next
  store i64 %step, ptr %place
  %from = getelementptr i64, ptr %new_dims, i64 %next
  %dim = load i64, ptr %from
  %longer = mul i64 %step, %dim
  br label %loop
end:
  ret i32 1
}}

define hidden ptr @memset(ptr %to, i32 %value, i64 %n) nounwind "no-builtins" {{
entry:
  %byte = trunc i32 %value to i8
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
  %done = icmp eq i64 %i, %n
  br i1 %done, label %end, label %body
body:
  %place = getelementptr i8, ptr %to, i64 %i
  store i8 %byte, ptr %place
  %next = add i64 %i, 1
  br label %loop
end:
  ret ptr %to
}}

define hidden ptr @memcpy(ptr noalias %to, ptr noalias %from, i64 %n) nounwind "no-builtins" {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
  %done = icmp eq i64 %i, %n
  br i1 %done, label %end, label %body
body:
  %source = getelementptr i8, ptr %from, i64 %i
  %byte = load i8, ptr %source
  %place = getelementptr i8, ptr %to, i64 %i
  store i8 %byte, ptr %place
  %next = add i64 %i, 1
  br label %loop
end:
  ret ptr %to
}}

define hidden ptr @memmove(ptr %to, ptr %from, i64 %n) nounwind "no-builtins" {{
entry:
  %up = icmp ult ptr %from, %to
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
  %done = icmp eq i64 %i, %n
  br i1 %done, label %end, label %body
body:
  %next = add i64 %i, 1
  %back = sub i64 %n, %next
  %at = select i1 %up, i64 %back, i64 %i
  %source = getelementptr i8, ptr %from, i64 %at
  %byte = load i8, ptr %source
  %place = getelementptr i8, ptr %to, i64 %at
  store i8 %byte, ptr %place
  br label %loop
end:
  ret ptr %to
}}
"""
LIBRARY_CALLS = ("memset", "memcpy", "memmove")  # LLVM makes calls of them out of loops


def runtime(family: str) -> str:
    """The module, in LLVM's language, for a family of processors: x86_64 or aarch64."""
    n = len(LIBC)
    return _TEXT.format(n=n, bytes=8 * n, futex=_FUTEX[family], initialize=INITIALIZE)
