"use strict";
// The page of an image network: its steps one after the other, in plain JavaScript.
// A value is {data: Float32Array, shape: [C, h, w]}, row after row, channel after channel.

const SHOWN = 10; // classes

class ImageNetwork {
  constructor(header, bytes) {
    this.header = header;
    this.tensors = new Map(header.tensors.map((t) => [t.name, this.read(t, bytes)]));
    // After which step a value is needed no more.
    this.last = new Map();
    header.steps.forEach((step, k) => step.of.forEach((i) => this.last.set(i, k)));
  }

  read(t, bytes) {
    const count = t.rows * Math.max(t.cols, 1), start = bytes.byteOffset + t.at;
    if (t.dtype === "float32") return new Float32Array(bytes.buffer, start, count);
    if (t.dtype === "float16")
      return Float32Array.from(new Uint16Array(bytes.buffer, start, count), halfToFloat);
    const scales = new Float32Array(bytes.buffer, bytes.byteOffset + t.scales, t.rows);
    const from = new Int8Array(bytes.buffer, start, count), out = new Float32Array(count);
    for (let i = 0; i < count; i++) out[i] = from[i] * scales[Math.floor(i / t.cols)];
    return out;
  }

  // Probabilities of pixels, (3, h, w) from 0 to 255.
  classify(pixels) {
    const { size, mean, std, steps } = this.header, plane = size[1] * size[2];
    const data = Float32Array.from(pixels, (x, i) => {
      const c = Math.floor(i / plane);
      return (x - mean[c]) / std[c];
    });
    const values = [{ data, shape: size }];
    steps.forEach((step, k) => {
      values.push(this[step.op](step, step.of.map((i) => values[i])));
      for (const i of step.of) if (this.last.get(i) === k) values[i] = null;
    });
    const scores = values[values.length - 1].data, most = Math.max(...scores);
    const shares = Array.from(scores, (s) => Math.exp(s - most));
    const sum = shares.reduce((a, b) => a + b, 0);
    return shares.map((s) => s / sum);
  }

  conv(step, [x]) {
    const [channels, height, width] = x.shape, weight = this.tensors.get(step.weight);
    const [kh, kw] = step.kernel, [sh, sw] = step.stride, [ph, pw] = step.padding;
    const [dh, dw] = step.dilation, each = channels / step.groups;
    const outputs = weight.length / (each * kh * kw);
    const h = Math.floor((height + 2 * ph - dh * (kh - 1) - 1) / sh) + 1;
    const w = Math.floor((width + 2 * pw - dw * (kw - 1) - 1) / sw) + 1;
    const out = new Float32Array(outputs * h * w), from = x.data;
    for (let o = 0; o < outputs; o++) {
      const group = Math.floor((o * step.groups) / outputs);
      for (let c = 0; c < each; c++) {
        const plane = (group * each + c) * height * width;
        for (let ky = 0; ky < kh; ky++)
          for (let kx = 0; kx < kw; kx++) {
            const factor = weight[((o * each + c) * kh + ky) * kw + kx];
            const left = kx * dw - pw; // input column of output column 0
            const x0 = Math.max(0, Math.ceil(-left / sw));
            const x1 = Math.min(w, Math.floor((width - 1 - left) / sw) + 1);
            for (let y = 0; y < h; y++) {
              const row = y * sh - ph + ky * dh;
              if (row < 0 || row >= height) continue;
              const to = (o * h + y) * w;
              let at = plane + row * width + left + x0 * sw;
              for (let i = x0; i < x1; i++, at += sw) out[to + i] += factor * from[at];
            }
          }
      }
    }
    return { data: out, shape: [outputs, h, w] };
  }

  scale(step, [x]) {
    const scale = this.tensors.get(step.scale), shift = this.tensors.get(step.shift);
    const plane = x.shape[1] * x.shape[2], out = new Float32Array(x.data.length);
    for (let c = 0; c < x.shape[0]; c++)
      for (let i = c * plane; i < (c + 1) * plane; i++) out[i] = x.data[i] * scale[c] + shift[c];
    return { data: out, shape: x.shape };
  }

  add(step, of) {
    const other = of[of.length - 1].data;
    return { data: of[0].data.map((v, i) => v + other[i]), shape: of[0].shape };
  }

  relu(step, [x]) { return { data: x.data.map((v) => (v > 0 ? v : 0)), shape: x.shape }; }
  relu6(step, [x]) {
    return { data: x.data.map((v) => (v > 6 ? 6 : v > 0 ? v : 0)), shape: x.shape };
  }

  cat(step, of) {
    const data = new Float32Array(of.reduce((sum, x) => sum + x.data.length, 0));
    let at = 0;
    for (const x of of) { data.set(x.data, at); at += x.data.length; }
    const channels = of.reduce((sum, x) => sum + x.shape[0], 0);
    return { data, shape: [channels, ...of[0].shape.slice(1)] };
  }

  pool(step, x, largest) {
    const [channels, height, width] = x.shape;
    const [kh, kw] = step.kernel, [sh, sw] = step.stride, [ph, pw] = step.padding;
    const h = Math.floor((height + 2 * ph - kh) / sh) + 1;
    const w = Math.floor((width + 2 * pw - kw) / sw) + 1;
    const data = new Float32Array(channels * h * w);
    let to = 0;
    for (let c = 0; c < channels; c++)
      for (let y = 0; y < h; y++)
        for (let i = 0; i < w; i++) {
          let most = -Infinity, sum = 0, count = 0; // pixels beyond the border do not count
          for (let ky = Math.max(0, y * sh - ph); ky < Math.min(height, y * sh - ph + kh); ky++)
            for (let kx = Math.max(0, i * sw - pw); kx < Math.min(width, i * sw - pw + kw); kx++) {
              const v = x.data[(c * height + ky) * width + kx];
              if (v > most) most = v;
              sum += v;
              count++;
            }
          data[to++] = largest ? most : sum / count;
        }
    return { data, shape: [channels, h, w] };
  }

  max(step, [x]) { return this.pool(step, x, true); }
  avg(step, [x]) { return this.pool(step, x, false); }

  // Every step-th row (axis 1) or column (axis 2) from a start on.
  from({ axis, start, step }, [x]) {
    const [channels, height, width] = x.shape, rows = axis === 1, k = rows ? height : width;
    const count = Math.max(0, Math.ceil((k - start) / step));
    const [h, w] = rows ? [count, width] : [height, count];
    const data = new Float32Array(channels * h * w);
    let to = 0;
    for (let c = 0; c < channels; c++)
      for (let y = 0; y < h; y++)
        for (let i = 0; i < w; i++)
          data[to++] = x.data[(c * height + (rows ? start + y * step : y)) * width +
                              (rows ? i : start + i * step)];
    return { data, shape: [channels, h, w] };
  }

  // Zeros below and to the right.
  pad({ below, right }, [x]) {
    const [channels, height, width] = x.shape, h = height + below, w = width + right;
    const data = new Float32Array(channels * h * w);
    for (let c = 0; c < channels; c++)
      for (let y = 0; y < height; y++) {
        const at = (c * height + y) * width;
        data.set(x.data.subarray(at, at + width), (c * h + y) * w);
      }
    return { data, shape: [channels, h, w] };
  }

  mean(step, [x]) {
    const plane = x.shape[1] * x.shape[2], data = new Float32Array(x.shape[0]);
    for (let c = 0; c < data.length; c++) {
      let sum = 0;
      for (let i = c * plane; i < (c + 1) * plane; i++) sum += x.data[i];
      data[c] = sum / plane;
    }
    return { data, shape: [data.length] };
  }

  linear(step, [x]) {
    const weight = this.tensors.get(step.weight), bias = this.tensors.get(step.bias);
    const width = x.data.length, data = new Float32Array(bias.length);
    for (let o = 0; o < data.length; o++) {
      let sum = bias[o];
      for (let i = 0; i < width; i++) sum += weight[o * width + i] * x.data[i];
      data[o] = sum;
    }
    return { data, shape: [data.length] };
  }
}

let network = null;

function showClasses(shares) {
  const order = shares.map((p, i) => [i, p]).sort((a, b) => b[1] - a[1]).slice(0, SHOWN);
  $("classes").replaceChildren(...order.map(([i, p]) => {
    const row = document.createElement("li"), bar = document.createElement("i");
    const name = document.createElement("span"), share = document.createElement("span");
    bar.className = "bar";
    bar.style.width = `${100 * (p || 0)}%`;
    name.textContent = header.classes[i];
    share.textContent = Number.isNaN(p) ? "" : percent(p);
    share.className = "percent";
    row.append(bar, name, share);
    return row;
  }));
}

// The middle of an image at the network's size, as (3, h, w).
function pixelsOf(image) {
  const [, h, w] = header.size, small = document.createElement("canvas");
  small.width = w;
  small.height = h;
  const draw = (canvas) => {
    const scale = Math.min(image.width / canvas.width, image.height / canvas.height) * header.crop;
    const across = canvas.width * scale, down = canvas.height * scale;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    context.drawImage(image, (image.width - across) / 2, (image.height - down) / 2, across, down,
                      0, 0, canvas.width, canvas.height);
    return context;
  };
  draw($("canvas"));
  const data = draw(small).getImageData(0, 0, w, h).data, pixels = new Uint8Array(3 * h * w);
  for (let i = 0; i < h * w; i++)
    for (let c = 0; c < 3; c++) pixels[c * h * w + i] = data[4 * i + c];
  return pixels;
}

async function take(file) {
  if (!file) return;
  try {
    const pixels = pixelsOf(await createImageBitmap(file)), begun = performance.now();
    showClasses(network.classify(pixels));
    $("took").textContent = `${file.name}: ${Math.round(performance.now() - begun)} ms`;
  } catch (error) {
    $("took").textContent = `${file.name} is no image that this browser reads`;
  }
}

window.rnnnas = { ready: false, header, take, classify: (pixels) => network.classify(pixels) };

async function begin() {
  await pause();
  network = new ImageNetwork(header, base64("weights"));
  const size = header.size.reduce((a, b) => a * b, 1), begun = performance.now();
  const pixels = Uint8Array.from({ length: size }, (_, i) => (i * 7919 + (i >> 3) * 31) % 251);
  const found = network.classify(pixels), took = performance.now() - begun;
  const off = Math.max(...found.map((p, i) => Math.abs(p - header.check[i]))), good = off < 1e-3;
  rnnnas.check = { off, good, milliseconds: took };
  $("state").textContent = good
    ? `Checked: this browser gives a test image the probabilities that torch gives it.`
    : `This browser's probabilities are off by ${off.toFixed(3)}: do not rely on them.`;
  $("state").className = good ? "good" : "bad";
  const drop = $("drop");
  $("file").addEventListener("change", (event) => take(event.target.files[0]));
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));
  showClasses(header.classes.map(() => NaN)); // their names, until there is an image
  rnnnas.ready = true;
}

begin().catch((error) => {
  $("state").textContent = `The page cannot run here: ${error.message}`;
  $("state").className = "bad";
  throw error;
});
