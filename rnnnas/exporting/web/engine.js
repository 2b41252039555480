"use strict";
// The language model: weights in one memory, products by WebAssembly with SIMD, or in plain
// JavaScript where there is none. Legend: a matrix is (rows, cols), y = W x; H hidden, V words.

const up = (n, step) => Math.ceil(n / step) * step;

class Weights {
  // table: entries of the page's header; bytes: Uint8Array of all weights; wasm: the kernels.
  constructor(table, bytes, wasm) {
    const place = new Map();
    let size = 0;
    const take = (count) => { const at = size; size = up(size + count, 16); return at; };
    let widest = 0, tallest = 0;
    for (const t of table) {
      if (!t.cols) continue;
      const rows = up(t.rows, 4), cols = up(t.cols, 8), int8 = t.dtype === "int8";
      place.set(t.name, { rows, cols, at: take(rows * cols * (int8 ? 1 : 4)),
                          scales: int8 ? take(rows * 4) : 0 });
      widest = Math.max(widest, cols);
      tallest = Math.max(tallest, rows);
    }
    this.inAt = take(widest * 4);
    this.outAt = take(tallest * 4);
    this.kernels = null;
    let buffer;
    try {
      const memory = new WebAssembly.Memory({ initial: Math.ceil(size / 65536) });
      const module = new WebAssembly.Module(wasm);
      this.kernels = new WebAssembly.Instance(module, { page: { memory } }).exports;
      buffer = memory.buffer;
    } catch (error) { // no SIMD, or not allowed here
      buffer = new ArrayBuffer(size);
    }
    this.simd = this.kernels !== null;
    this.f32 = new Float32Array(buffer, 0, size >> 2);
    this.i16 = new Int16Array(buffer, 0, size >> 1);
    this.i8 = new Int8Array(buffer, 0, size);
    this.matrices = new Map();
    this.vectors = new Map();
    for (const t of table) this.read(t, bytes, place.get(t.name));
  }

  read(t, bytes, place) {
    const count = t.rows * Math.max(t.cols, 1);
    const start = bytes.byteOffset + t.at;
    if (!t.cols) {
      this.vectors.set(t.name, new Float32Array(bytes.buffer, start, count));
      return;
    }
    const { at, cols, scales } = place;
    if (t.dtype === "int8") {
      const from = new Int8Array(bytes.buffer, start, count);
      for (let r = 0; r < t.rows; r++)
        this.i8.set(from.subarray(r * t.cols, (r + 1) * t.cols), at + r * cols);
      this.f32.set(new Float32Array(bytes.buffer, bytes.byteOffset + t.scales, t.rows), scales >> 2);
    } else {
      const half = t.dtype === "float16";
      const from = half ? new Uint16Array(bytes.buffer, start, count)
                        : new Float32Array(bytes.buffer, start, count);
      for (let r = 0; r < t.rows; r++)
        for (let c = 0; c < t.cols; c++) {
          const value = from[r * t.cols + c];
          this.f32[(at >> 2) + r * cols + c] = half ? halfToFloat(value) : value;
        }
    }
    this.matrices.set(t.name, { ...place, int8: t.dtype === "int8", height: t.rows, width: t.cols });
  }

  // A row of the embedding, x (D,).
  row(name, index) {
    const m = this.matrices.get(name), x = new Float32Array(m.width);
    if (m.int8) {
      const scale = this.f32[(m.scales >> 2) + index], from = m.at + index * m.cols;
      for (let i = 0; i < x.length; i++) x[i] = this.i8[from + i] * scale;
    } else {
      const from = (m.at >> 2) + index * m.cols;
      x.set(this.f32.subarray(from, from + m.width));
    }
    return x;
  }

  // y = W x: a view that the next product overwrites.
  times(name, x) {
    const m = this.matrices.get(name);
    const y = this.f32.subarray(this.outAt >> 2, (this.outAt >> 2) + m.height);
    let unit = 1;
    if (m.int8) {
      let largest = 0;
      for (let i = 0; i < x.length; i++) largest = Math.max(largest, Math.abs(x[i]));
      const limit = Math.min(32767, Math.floor((2 ** 31 - 1) / (127 * m.width)));
      unit = largest > 0 ? Math.fround(largest / limit) : 1;
      const at = this.inAt >> 1;
      for (let i = 0; i < x.length; i++) this.i16[at + i] = Math.round(x[i] / unit);
      this.i16.fill(0, at + x.length, at + m.cols);
    } else {
      const at = this.inAt >> 2;
      this.f32.set(x, at);
      this.f32.fill(0, at + x.length, at + m.cols);
    }
    if (this.kernels && m.int8)
      this.kernels.i8(m.at, m.scales, this.inAt, this.outAt, m.rows, m.cols, unit);
    else if (this.kernels) this.kernels.f32(m.at, this.inAt, this.outAt, m.rows, m.cols);
    else this.plainTimes(m, y, unit);
    return y;
  }

  plainTimes(m, y, unit) {
    for (let r = 0; r < m.height; r++) {
      let sum = 0;
      if (m.int8) {
        const at = this.inAt >> 1, from = m.at + r * m.cols;
        for (let c = 0; c < m.width; c++) sum += this.i8[from + c] * this.i16[at + c];
        sum *= this.f32[(m.scales >> 2) + r] * unit;
      } else {
        const at = this.inAt >> 2, from = (m.at >> 2) + r * m.cols;
        for (let c = 0; c < m.width; c++) sum += this.f32[from + c] * this.f32[at + c];
      }
      y[r] = sum;
    }
  }
}

const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const ACTIVATIONS = {
  tanh: Math.tanh, relu: (x) => Math.max(x, 0), sigmoid, identity: (x) => x,
};

class LanguageModel {
  constructor(shape, weights) {
    this.shape = shape;
    this.weights = weights;
    this.words = weights.matrices.get("embedding").height;
    this.each = shape.cell.type === "lstm" ? 2 : 1;
  }

  // The state at the start of a text: a Float32Array (H,) for each of its tensors.
  start() {
    return Array.from({ length: this.shape.layers * this.each },
                      () => new Float32Array(this.shape.hidden));
  }

  // The state after a token.
  step(token, states) {
    let x = this.weights.row("embedding", token);
    const after = [];
    for (let k = 0; k < this.shape.layers; k++) {
      const own = states.slice(k * this.each, (k + 1) * this.each);
      const next = this.shape.cell.type === "derived" ? this.derived(k, x, own[0])
                 : this.shape.cell.type === "lstm" ? this.lstm(k, x, own) : this.gru(k, x, own[0]);
      after.push(...next);
      x = next[0];
    }
    return after;
  }

  gated(s, product, op) {
    const width = s.length, out = new Float32Array(width), form = ACTIVATIONS[op];
    for (let i = 0; i < width; i++)
      out[i] = s[i] + sigmoid(product[i]) * (form(product[width + i]) - s[i]);
    return out;
  }

  derived(k, x, h) {
    const { nodes, join, concat } = this.shape.cell, joined = new Float32Array(2 * h.length);
    joined.set(x);
    joined.set(h, h.length);
    const states = [this.gated(h, this.weights.times(`${k}.first`, joined), "tanh")];
    nodes.forEach((genes, i) => {
      const parts = genes.map(([op, source]) => {
        const s = states[source];
        return this.gated(s, this.weights.times(`${k}.node.${i}`, s), op);
      });
      const sum = parts[0], share = join === "mean" ? 1 / parts.length : 1;
      for (const part of parts.slice(1)) for (let j = 0; j < sum.length; j++) sum[j] += part[j];
      if (share !== 1) for (let j = 0; j < sum.length; j++) sum[j] *= share;
      states.push(sum);
    });
    const mean = new Float32Array(h.length);
    for (const i of concat) for (let j = 0; j < mean.length; j++) mean[j] += states[i][j];
    for (let j = 0; j < mean.length; j++) mean[j] /= concat.length;
    return [mean];
  }

  // W x + b as a copy.
  affine(name, bias, x) {
    const y = Float32Array.from(this.weights.times(name, x)), b = this.weights.vectors.get(bias);
    for (let i = 0; i < y.length; i++) y[i] += b[i];
    return y;
  }

  lstm(k, x, [h, c]) {
    const a = this.affine(`${k}.weight_ih`, `${k}.bias_ih`, x);
    const b = this.affine(`${k}.weight_hh`, `${k}.bias_hh`, h), n = h.length;
    const out = new Float32Array(n), cell = new Float32Array(n);
    for (let i = 0; i < n; i++) {
      const gate = (part) => a[part * n + i] + b[part * n + i];
      cell[i] = sigmoid(gate(1)) * c[i] + sigmoid(gate(0)) * Math.tanh(gate(2));
      out[i] = sigmoid(gate(3)) * Math.tanh(cell[i]);
    }
    return [out, cell];
  }

  gru(k, x, h) {
    const a = this.affine(`${k}.weight_ih`, `${k}.bias_ih`, x);
    const b = this.affine(`${k}.weight_hh`, `${k}.bias_hh`, h), n = h.length;
    const out = new Float32Array(n);
    for (let i = 0; i < n; i++) {
      const z = sigmoid(a[n + i] + b[n + i]);
      const fresh = Math.tanh(a[2 * n + i] + sigmoid(a[i] + b[i]) * b[2 * n + i]);
      out[i] = (1 - z) * fresh + z * h[i];
    }
    return [out];
  }

  // log p of every next token, a view that the next call overwrites. (V,)
  logProbs(states) {
    const h = states[states.length - this.each];
    if (this.shape.softmaxes === 1) return normalised(this.scores(h));
    const shares = normalised(Float32Array.from(this.weights.times("prior", h)));
    const total = new Float32Array(this.words).fill(-Infinity);
    for (let k = 0; k < this.shape.softmaxes; k++) {
      const latent = Float32Array.from(this.weights.times(`projection.${k}`, h), Math.tanh);
      const part = normalised(this.scores(latent));
      for (let v = 0; v < total.length; v++) {
        const one = part[v] + shares[k], most = Math.max(total[v], one);
        total[v] = most + Math.log(Math.exp(total[v] - most) + Math.exp(one - most));
      }
    }
    return total;
  }

  scores(h) {
    const y = this.weights.times("embedding", h), b = this.weights.vectors.get("bias");
    for (let v = 0; v < y.length; v++) y[v] += b[v];
    return y;
  }
}

// Scores to log p, in their place.
function normalised(scores) {
  let most = -Infinity;
  for (let v = 0; v < scores.length; v++) if (scores[v] > most) most = scores[v];
  let sum = 0;
  for (let v = 0; v < scores.length; v++) sum += Math.exp(scores[v] - most);
  const shift = most + Math.log(sum);
  for (let v = 0; v < scores.length; v++) scores[v] -= shift;
  return scores;
}

// The `count` best of log p, best first, leaving out the ids in `without`: [id, log p] pairs.
function best(logProbs, count, without) {
  const found = [];
  let least = -Infinity;
  for (let v = 0; v < logProbs.length; v++) {
    if (!(logProbs[v] > least) || without.has(v)) continue;
    let at = found.length;
    while (at > 0 && found[at - 1][1] < logProbs[v]) at--;
    found.splice(at, 0, [v, logProbs[v]]);
    if (found.length > count) found.pop();
    if (found.length === count) least = found[count - 1][1];
  }
  return found;
}

let shares = new Float64Array(0); // room for `drawn`

// A token drawn from log p at a temperature, of the `top` likeliest (0: of all).
function drawn(logProbs, temperature, top, without) {
  if (temperature === 0 || top === 1) return best(logProbs, 1, without)[0][0];
  const cut = top > 0 && top < logProbs.length;
  const ids = cut ? best(logProbs, top, without) : null;
  const count = cut ? ids.length : logProbs.length, cold = 1 / temperature;
  if (shares.length < count) shares = new Float64Array(count);
  let most = -Infinity;
  for (let i = 0; i < count; i++) most = Math.max(most, cut ? ids[i][1] : logProbs[i]);
  for (let i = 0; i < count; i++)
    shares[i] = Math.exp(((cut ? ids[i][1] : logProbs[i]) - most) * cold);
  if (!cut) for (const id of without) if (id !== null) shares[id] = 0;
  let sum = 0;
  for (let i = 0; i < count; i++) sum += shares[i];
  let left = Math.random() * sum, last = 0;
  for (let i = 0; i < count; i++) {
    if (shares[i] > 0) last = i;
    left -= shares[i];
    if (left < 0) break;
  }
  return cut ? ids[last][0] : last;
}
