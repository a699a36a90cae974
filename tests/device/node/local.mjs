// DEVICE.md, "Batches", "Clipping and encoding" and "Noise".
import { be, number, sha256 } from "./bytes.mjs";

// -- batches: SplitMix64 -----------------------------------------------------------------------
const WORD = (1n << 64n) - 1n, GOLDEN = 0x9e3779b97f4a7c15n;
const finalise = (z) => {
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & WORD;
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & WORD;
  return z ^ (z >> 31n);
};
export const words = (seed, domain, count) => {
  const state = finalise((seed & WORD) ^ finalise(BigInt(domain)));
  return Array.from({ length: count }, (_, i) => finalise((state + GOLDEN * BigInt(i + 1)) & WORD));
};
export const batchSeed = (seed, round, client) => number(Buffer.from(
  sha256(Buffer.from("fedsys\0"), be(8, 4), be(seed, 8), Buffer.from(`batches ${round} ${client}`))
    .subarray(0, 8)).reverse());
export function* batches(rows, seed, { epochs, batch_size: size }) {
  for (let epoch = 0; epoch < epochs; epoch++) {
    const keys = words(seed, epoch + 1, rows).map((word) => word >> 1n);
    const order = [...keys.keys()].sort((a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : a - b));
    for (let start = 0; start < rows; start += size) yield order.slice(start, start + size);
  }
}

// -- clipping ----------------------------------------------------------------------------------
const rint = (x) => { // half to even
  const low = Math.floor(x), rest = x - low;
  return rest < 0.5 ? low : rest > 0.5 ? low + 1 : low % 2 === 0 ? low : low + 1;
};
const square = (values) => values.reduce((sum, value) => sum + value * value, 0);

export function clip(update, bound) { // float32 in, integers out
  const d = update.length, limit = 4096 * d, scale = (64 * Math.sqrt(d)) / bound;
  let squares = square(update), norm = Math.sqrt(squares);
  const peak = update.reduce((most, x) => (Number.isNaN(x) ? NaN : Math.max(most, Math.abs(x))), 0);
  const finite = Number.isFinite(peak);
  if (!finite) norm = 0;
  if (norm > 1e-300) { // to 24 significant bits
    const unit = 2 ** Math.floor(Math.log2(norm));
    norm = Math.fround(norm / unit) * unit;
  }
  let factor = scale * (bound / Math.max(norm, bound)), over = false;
  const row = finite ? update : new Float32Array(d);
  for (let attempt = 0; attempt <= 4; attempt++) {
    squares = square(Array.from(row, (x) => rint(x * factor)));
    over = squares > limit;
    if (attempt < 4 && over) factor *= Math.sqrt(limit / squares) * (1 - 2 ** (attempt - 9));
  }
  const cut = factor * (1 - 2 ** -20);
  const values = Array.from(row, (x) => (over ? Math.trunc(x * cut) : rint(x * factor)) + 0);
  return square(values) <= limit ? values : values.map(() => 0);
}
export const inRing = (values, bits) =>
  values.map((value) => BigInt.asUintN(bits, BigInt(value)));

// -- noise: round(sigma Phi^-1(U)), decided by integers ----------------------------------------
const rational = (x) => { // a double as numerator over a power of two
  let shift = 0n;
  while (!Number.isInteger(x)) { x *= 2; shift++; }
  return [BigInt(x), 1n << shift];
};
const constants = new Map();
function rootTwoPi(bits) { // sqrt(2 pi), in units of 2^-bits
  if (!constants.has(bits)) {
    const one = 1n << BigInt(bits + 64);
    const arctan = (n) => {
      let term = one / n, sum = term, sign = -1n;
      for (let k = 3n; term; k += 2n, sign = -sign) { term /= n * n; sum += (sign * term) / k; }
      return sum;
    };
    const pi = 4n * (4n * arctan(5n) - arctan(239n));
    let root = 1n << BigInt(bits + 66), before = 0n;
    const squared = (2n * pi) << BigInt(bits + 64);
    while (before !== root) { before = root; root = (root + squared / root) >> 1n; if (root - before === 1n) break; }
    constants.set(bits, root >> 64n);
  }
  return constants.get(bits);
}
// Q((k + 1/2) / sigma) for k >= 0, in units of 2^-bits, by the Taylor series around 0
export function upperTail(k, sigma, bits) {
  const [above, below] = rational(sigma);
  const x = Number(2n * BigInt(k) + 1n) / 2 / sigma;
  if (x > 40) return 0n;
  const work = bits + Math.ceil(0.73 * x * x) + 64;
  const point = (((2n * BigInt(k) + 1n) * below) << BigInt(work)) / (2n * above);
  const square = (point * point) >> BigInt(work);
  let term = point, sum = 0n;
  for (let n = 0n; term; n++) { sum += term / (2n * n + 1n); term = -((term * square) >> BigInt(work)) / (2n * (n + 1n)); }
  const one = 1n << BigInt(work);
  return (one / 2n - (sum * one) / rootTwoPi(work)) >> BigInt(work - bits);
}

export class Noise {
  constructor(sigma) { this.sigma = sigma; this.entries = new Map(); }
  entry(k) { // floor(2^64 P[R <= k])
    if (!this.entries.has(k)) {
      const tail = upperTail(k >= 0 ? k : -k - 1, this.sigma, 64 + 96) >> 96n;
      this.entries.set(k, k >= 0 ? WORD - tail : tail);
    }
    return this.entries.get(k);
  }
  draw(word, further) { // `further` gives 120 bytes, if the word does not decide
    const reach = Math.ceil(9.2 * this.sigma) + 1;
    let low = -reach, high = reach; // the least k whose entry is not below the word
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if (this.entry(middle) < word) low = middle + 1; else high = middle;
    }
    return this.entry(low) === word ? this.settle(word, number(further()), low) : low;
  }
  settle(word, more, k) { // U has 1,024 bits; the cell's midpoint decides between k and its neighbours
    const bits = 1024 + 64, middle = (2n * ((word << 960n) + more) + 1n) << 63n;
    const below = (j) => { // P[R <= j] in units of 2^-bits
      const tail = upperTail(j >= 0 ? j : -j - 1, this.sigma, bits);
      return j >= 0 ? (1n << BigInt(bits)) - tail : tail;
    };
    while (below(k - 1) > middle) k--;
    while (below(k) < middle) k++;
    return k;
  }
}
