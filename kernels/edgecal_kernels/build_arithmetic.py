"""Arithmetic that old x86 processors have no instruction for, in LLVM's language, for the portable library.

Where LLVM finds no instruction it calls a function of the C library or of a compiler's. Those are here, so that the
library needs no other, and they round as the instructions do: the bits are those of any other library. `llvm.fma` of
float32 becomes `fmaf`, `llvm.rint` becomes `rintf`, and float16 is widened and rounded by the other two.

- `fmaf`: the product is exact in float64; their sum is rounded to odd (what it lost is exact, Knuth's TwoSum; an even
  last bit moves towards it), and so rounding it once more gives what one rounding would (Boldo and Melquiond, 2008).
- `rintf`: adding 2^23 leaves no place for a fraction.
- `__extendhfsf2`: the bits at their new place are the number times 2^-112; the product puts that right, also where
  float16 is subnormal.
- `__truncsfhf2`: normal numbers add half of the last place, a little less where that would make a tie odd; those
  smaller than 2^-14 add 0.5, whose last place is theirs.
"""

from __future__ import annotations

FUNCTIONS = ("fmaf", "rintf", "__extendhfsf2", "__truncsfhf2")

TEXT = """
declare float @llvm.fabs.f32(float)
declare float @llvm.copysign.f32(float, float)
declare i32 @llvm.umin.i32(i32, i32)

define hidden float @fmaf(float %x, float %y, float %z) nounwind "no-builtins" {
  %xd = fpext float %x to double
  %yd = fpext float %y to double
  %zd = fpext float %z to double
  %product = fmul double %xd, %yd
  %sum = fadd double %product, %zd
  %z_part = fsub double %sum, %product
  %product_part = fsub double %sum, %z_part
  %product_lost = fsub double %product, %product_part
  %z_lost = fsub double %zd, %z_part
  %lost = fadd double %product_lost, %z_lost
  %inexact = fcmp one double %lost, 0.0
  %bits = bitcast double %sum to i64
  %odd = trunc i64 %bits to i1
  %even = xor i1 %odd, true
  %moves = and i1 %inexact, %even
  %lost_bits = bitcast double %lost to i64
  %signs = xor i64 %bits, %lost_bits
  %inwards = icmp slt i64 %signs, 0
  %direction = select i1 %inwards, i64 -1, i64 1
  %moved = add i64 %bits, %direction
  %chosen = select i1 %moves, i64 %moved, i64 %bits
  %result = bitcast i64 %chosen to double
  %single = fptrunc double %result to float
  ret float %single
}

define hidden float @rintf(float %x) nounwind "no-builtins" {
  %size = call float @llvm.fabs.f32(float %x)
  %whole = fcmp oge float %size, 8388608.0
  %large = call float @llvm.copysign.f32(float 8388608.0, float %x)
  %sum = fadd float %x, %large
  %rounded = fsub float %sum, %large
  %signed = call float @llvm.copysign.f32(float %rounded, float %x)
  %result = select i1 %whole, float %x, float %signed
  ret float %result
}

define hidden float @__extendhfsf2(half %x) nounwind "no-builtins" {
  %bits = bitcast half %x to i16
  %wide = zext i16 %bits to i32
  %size = and i32 %wide, 32767
  %sign = and i32 %wide, 32768
  %sign_at = shl i32 %sign, 16
  %shifted = shl i32 %size, 13
  %small = bitcast i32 %shifted to float
  %scaled = fmul float %small, 0x46F0000000000000
  %scaled_bits = bitcast float %scaled to i32
  %special = icmp uge i32 %size, 31744
  %nan = icmp ugt i32 %size, 31744
  %quiet = select i1 %nan, i32 2143289344, i32 2139095040
  %special_bits = or i32 %shifted, %quiet
  %positive = select i1 %special, i32 %special_bits, i32 %scaled_bits
  %all = or i32 %positive, %sign_at
  %result = bitcast i32 %all to float
  ret float %result
}

define hidden half @__truncsfhf2(float %x) nounwind "no-builtins" {
  %bits = bitcast float %x to i32
  %size = and i32 %bits, 2147483647
  %sign_at = lshr i32 %bits, 16
  %sign = and i32 %sign_at, 32768
  %last_at = lshr i32 %size, 13
  %last = and i32 %last_at, 1
  %moved = sub i32 %size, 939520001
  %up = add i32 %moved, %last
  %normal_wide = lshr i32 %up, 13
  %normal = call i32 @llvm.umin.i32(i32 %normal_wide, i32 31744)
  %positive = bitcast i32 %size to float
  %sum = fadd float %positive, 5.0e-1
  %sum_bits = bitcast float %sum to i32
  %subnormal = sub i32 %sum_bits, 1056964608
  %is_small = icmp ult i32 %size, 947912704
  %finite = select i1 %is_small, i32 %subnormal, i32 %normal
  %payload = and i32 %last_at, 1023
  %quiet = or i32 %payload, 32256
  %is_nan = icmp ugt i32 %size, 2139095040
  %magnitude = select i1 %is_nan, i32 %quiet, i32 %finite
  %all = or i32 %magnitude, %sign
  %narrow = trunc i32 %all to i16
  %result = bitcast i16 %narrow to half
  ret half %result
}
"""
