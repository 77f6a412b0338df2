/** IEEE 754 half precision to single, exactly: no browser need know Float16Array. */

const VALUES = new Float32Array(65536);
for (let bits = 0; bits < 65536; bits++) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  VALUES[bits] =
    exponent === 31 ? (fraction ? NaN : sign * Infinity)
    : exponent === 0 ? sign * fraction * 2 ** -24
    : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

export function fromHalf(bits: Uint16Array): Float32Array {
  const out = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) out[i] = VALUES[bits[i]!]!;
  return out;
}
