// DEVICE.md, "Training": local SGD from a graph.
import { batches } from "./local.mjs";
import { run } from "./onnx.mjs";

const f32 = Math.fround;

// x: rows of numbers; y: classes; rows: those that are trained on. Returns w_local - w_global.
export function train(graph, { x, y, weights, seed, local, rows: kept = [...y.keys()] }) {
  if (local.optimizer !== "sgd" || local.momentum || local.weight_decay || local.proximal_mu) {
    throw new Error("only plain SGD is supported here");
  }
  const size = graph.batch, width = x[0].length, trained = Float32Array.from(weights), losses = [];
  for (const batch of batches(kept.length, seed, local)) {
    const rows = [...batch, ...Array(size - batch.length).fill(batch[0])].map((place) => kept[place]);
    const [gradient, loss] = run(graph, {
      weights: { shape: [trained.length], data: Array.from(trained) },
      x: { shape: [size, width], data: rows.flatMap((row) => Array.from(x[row])) },
      y: { shape: [size], data: rows.map((row) => y[row]) },
      example_weights: { shape: [size], data: rows.map((_, i) => (i < batch.length ? f32(1 / batch.length) : 0)) },
    });
    losses.push(loss);
    gradient.forEach((value, i) => { trained[i] = f32(trained[i] - f32(value * f32(local.learning_rate))); });
  }
  return { update: trained.map((value, i) => value - weights[i]), losses };
}
