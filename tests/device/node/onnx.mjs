// An interpreter of training graphs, with the operators that a linear classifier needs.
import { bytesAt, decode, intAt } from "./protobuf.mjs";

const text = (bytes) => Buffer.from(bytes).toString("utf8");
const count = (shape) => shape.reduce((a, b) => a * b, 1);
const ints = (values = []) => values.flatMap((value) => {
  if (typeof value === "bigint") return [Number(BigInt.asIntN(64, value))];
  const found = []; // packed
  let one = 0n, shift = 0n;
  for (const byte of value) {
    one |= BigInt(byte & 127) << shift; shift += 7n;
    if (!(byte & 128)) { found.push(Number(BigInt.asIntN(64, one))); one = 0n; shift = 0n; }
  }
  return found;
});

function tensor(bytes) {
  const fields = decode(bytes), shape = ints(fields.get(1)), type = intAt(fields, 2);
  const raw = Buffer.from(bytesAt(fields, 9)), data = [];
  for (let at = 0; at < raw.length;) {
    if (type === 1) { data.push(raw.readFloatLE(at)); at += 4; }
    else if (type === 7) { data.push(Number(raw.readBigInt64LE(at))); at += 8; }
    else throw new Error(`a tensor of type ${type}`);
  }
  return { shape, data };
}

export function read(file) {
  const graph = decode(bytesAt(decode(file), 7));
  const values = new Map();
  for (const each of graph.get(5) ?? []) values.set(text(bytesAt(decode(each), 8)), tensor(each));
  const nodes = (graph.get(1) ?? []).map((each) => {
    const fields = decode(each), attributes = {};
    for (const one of fields.get(5) ?? []) {
      const attribute = decode(one), kind = intAt(attribute, 20);
      attributes[text(bytesAt(attribute, 1))] =
        kind === 2 ? intAt(attribute, 3) : kind === 7 ? ints(attribute.get(8)) : text(bytesAt(attribute, 4));
    }
    return { op: text(bytesAt(fields, 4)), inputs: (fields.get(1) ?? []).map(text),
             outputs: (fields.get(2) ?? []).map(text), attributes };
  });
  const shapes = new Map((graph.get(11) ?? []).map((each) => {
    const input = decode(each), type = decode(bytesAt(decode(bytesAt(input, 2)), 1));
    return [text(bytesAt(input, 1)), (decode(bytesAt(type, 2)).get(1) ?? []).map((one) => intAt(decode(one), 1))];
  }));
  return { values, nodes, batch: shapes.get("y")[0] }; // how many examples it takes
}

const f32 = Math.fround;
function broadcast(shapes) {
  const rank = Math.max(...shapes.map((shape) => shape.length));
  return Array.from({ length: rank }, (_, i) =>
    Math.max(...shapes.map((shape) => shape[shape.length - rank + i] ?? 1)));
}
function elementwise(f, ...inputs) {
  const shape = broadcast(inputs.map((each) => each.shape));
  const strides = inputs.map((each) => {
    let step = 1;
    const found = Array(shape.length).fill(0);
    for (let i = each.shape.length - 1; i >= 0; i--) {
      if (each.shape[i] > 1) found[shape.length - each.shape.length + i] = step;
      step *= each.shape[i];
    }
    return found;
  });
  const data = Array.from({ length: count(shape) }, (_, flat) => {
    const at = inputs.map(() => 0);
    for (let i = shape.length - 1, rest = flat; i >= 0; i--) {
      const place = rest % shape[i];
      rest = (rest - place) / shape[i];
      strides.forEach((stride, j) => { at[j] += place * stride[i]; });
    }
    return f(...inputs.map((each, j) => each.data[at[j]]));
  });
  return { shape, data };
}
const rows = (x) => Array.from({ length: x.shape[0] }, (_, i) =>
  x.data.slice(i * x.shape[1], (i + 1) * x.shape[1]));
const transposed = (x) => ({ shape: [x.shape[1], x.shape[0]],
  data: Array.from({ length: x.data.length }, (_, i) =>
    x.data[(i % x.shape[0]) * x.shape[1] + Math.floor(i / x.shape[0])]) });

const OPERATORS = {
  Identity: (_, x) => x,
  Reshape: (_, x, shape) => ({ shape: shape.data, data: x.data }),
  Expand: (_, x, shape) => elementwise((value) => value, x, { shape: shape.data, data: Array(count(shape.data)) }),
  Neg: (_, x) => elementwise((a) => -a, x),
  Exp: (_, x) => elementwise((a) => f32(Math.exp(a)), x),
  Mul: (_, x, y) => elementwise((a, b) => f32(a * b), x, y),
  Sub: (_, x, y) => elementwise((a, b) => f32(a - b), x, y),
  Equal: (_, x, y) => elementwise((a, b) => a === b, x, y),
  Not: (_, x) => elementwise((a) => !a, x),
  Where: (_, c, x, y) => elementwise((a, b, d) => (a ? b : d), c, x, y),
  Concat: (_, ...all) => ({ shape: [all.reduce((n, x) => n + x.shape[0], 0)], data: all.flatMap((x) => x.data) }),
  Split: (_, x, sizes) => {
    let at = 0;
    return sizes.data.map((size) => ({ shape: [size], data: x.data.slice(at, (at += size)) }));
  },
  Transpose: (_, x) => transposed(x),
  Gemm: ({ transA, transB }, a, b, c) => {
    const left = rows(transA ? transposed(a) : a), right = rows(transB ? b : transposed(b));
    const data = left.flatMap((row) => right.map((column, j) =>
      f32(row.reduce((sum, value, k) => sum + value * column[k], 0) + (c ? c.data[j] : 0))));
    return { shape: [left.length, right.length], data };
  },
  LogSoftmax: (_, x) => ({ shape: x.shape, data: rows(x).flatMap((row) => {
    const peak = Math.max(...row), total = Math.log(row.reduce((sum, a) => sum + Math.exp(a - peak), 0));
    return row.map((a) => f32(a - peak - total));
  }) }),
  ReduceSum: ({ keepdims }, x, axes) => {
    const [axis] = axes.data;
    if (x.shape.length === 1) return { shape: keepdims ? [1] : [], data: [f32(x.data.reduce((a, b) => a + b, 0))] };
    const sums = rows(axis === 0 ? transposed(x) : x).map((row) => f32(row.reduce((a, b) => a + b, 0)));
    return { shape: keepdims ? (axis === 0 ? [1, sums.length] : [sums.length, 1]) : [sums.length], data: sums };
  },
  GatherElements: (_, x, index) => ({ shape: index.shape,
    data: index.data.map((at, i) => x.data[Math.floor(i / index.shape[1]) * x.shape[1] + at]) }),
  ScatterElements: (_, x, index, updates) => {
    const data = [...x.data];
    index.data.forEach((at, i) => { data[Math.floor(i / index.shape[1]) * x.shape[1] + at] = updates.data[i]; });
    return { shape: x.shape, data };
  },
};

export function run({ values, nodes }, inputs) {
  const known = new Map([...values, ...Object.entries(inputs)]);
  for (const { op, inputs: names, outputs, attributes } of nodes) {
    const made = OPERATORS[op](attributes, ...names.map((name) => known.get(name)));
    (Array.isArray(made) ? made : [made]).forEach((each, i) => known.set(outputs[i], each));
  }
  return [known.get("gradient").data, known.get("loss").data[0]];
}
