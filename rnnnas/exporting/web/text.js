"use strict";
// The page of a language model: what is typed is scored at once, and goes on where it ends.

const BITS = 12; // of surprise, where the colour is full
const SLICE = 14; // milliseconds of work between two looks at the keyboard
const SHOWN = 10; // next tokens

const tokeniser = new Tokeniser(header.tokeniser);
const without = new Set([header.tokeniser.unk]); // never written

let model = null;
// What has been read so far: states[i] after ids[i]; ids[0] is the line end that every text
// follows, as in training; nats[i] of ids[i]. It is cut back to what a new text shares with it.
const read = { ids: [], states: [], nats: [0] };
let work = 0; // number of the text being read: an older one stops
let writing = false;

// Reads tokens on from what is known of the same text; false where a newer text came meanwhile.
async function follow(tokens, mine, look) {
  const ids = [header.tokeniser.eos, ...tokens.map((t) => t.id)];
  let same = 0;
  while (same < ids.length && same < read.ids.length && ids[same] === read.ids[same]) same++;
  read.ids.length = read.states.length = read.nats.length = same;
  let until = performance.now() + SLICE;
  for (let i = same; i < ids.length; i++) {
    const before = i ? read.states[i - 1] : model.start();
    read.nats.push(i ? -model.logProbs(before)[ids[i]] : 0);
    read.states.push(model.step(ids[i], before));
    read.ids.push(ids[i]);
    if (performance.now() > until) {
      if (look) look();
      await pause();
      if (mine !== work) return false;
      until = performance.now() + SLICE;
    }
  }
  return true;
}

const perplexityOf = (nats) => Math.exp(nats.reduce((sum, x) => sum + x, 0) / (nats.length || 1));

function showWords(tokens) {
  const nats = read.nats.slice(1), line = document.createDocumentFragment();
  tokens.slice(0, nats.length).forEach((token, i) => {
    const span = document.createElement("span"), bits = nats[i] / Math.LN2;
    if (token.space) line.append(" ");
    span.textContent = token.text === "\n" ? "\u21b5\n" : token.text;
    span.style.backgroundColor = `rgba(var(--hot), ${(0.6 * Math.min(bits / BITS, 1)).toFixed(3)})`;
    span.title = `${bits.toFixed(1)} bits, probability ${percent(Math.exp(-nats[i]))}`;
    if (token.id === header.tokeniser.unk) span.className = "unknown";
    line.append(span);
  });
  $("words").replaceChildren(line);
  $("perplexity").textContent = nats.length ? perplexityOf(nats).toFixed(2) : "\u2013";
  $("count").textContent = nats.length.toLocaleString("en");
  const unknown = tokens.filter((t) => t.id === header.tokeniser.unk).length;
  $("unknown").textContent = unknown.toLocaleString("en");
}

function showNext() {
  const rows = best(model.logProbs(read.states[read.states.length - 1]), SHOWN, new Set());
  const most = Math.exp(rows[0][1]);
  $("next").replaceChildren(...rows.map(([id, logP]) => {
    const row = document.createElement("li"), button = document.createElement("button");
    const bar = document.createElement("i"), word = document.createElement("span");
    const share = document.createElement("span"), p = Math.exp(logP);
    bar.className = "bar";
    bar.style.width = `${(100 * p) / most}%`;
    word.textContent = tokeniser.shown(id);
    share.textContent = percent(p);
    share.className = "percent";
    button.type = "button";
    button.append(bar, word, share);
    button.addEventListener("click", () => add([id]));
    row.append(button);
    return row;
  }));
}

// The tokens of what is typed; null, and the reason shown, where a word is not to be had.
function typed() {
  try {
    return tokeniser.encode($("text").value);
  } catch (error) {
    $("words").textContent = error.message;
    return null;
  }
}

async function update() {
  const mine = ++work, tokens = typed();
  if (!tokens || !(await follow(tokens, mine, () => showWords(tokens)))) return;
  showWords(tokens);
  showNext();
}

function add(ids) {
  if (writing) return undefined;
  $("text").value = tokeniser.decode(ids, $("text").value);
  $("text").scrollTop = $("text").scrollHeight;
  return update();
}

// Writes `count` tokens after the text; calls `each` with those of a slice.
async function write(count, each, temperature, top) {
  let states = read.states[read.states.length - 1], ids = [], made = 0;
  let busy = 0, slice = performance.now();
  while (made < count && writing) {
    const id = drawn(model.logProbs(states), temperature, top, without);
    states = model.step(id, states);
    ids.push(id);
    made++;
    if (performance.now() > slice + SLICE || made === count) {
      busy += performance.now() - slice;
      each(ids, made / (busy / 1000));
      ids = [];
      await pause();
      slice = performance.now();
    }
  }
  return made / (busy / 1000);
}

async function onWrite() {
  const tokens = typed();
  if (writing || !tokens) return;
  writing = true;
  $("write").disabled = true;
  $("stop").disabled = false;
  $("text").readOnly = true; // what is typed meanwhile would be written over
  work++;
  await follow(tokens, work, null);
  const temperature = Number($("temperature").value), top = Number($("top").value) || 0;
  const before = $("text").value, written = []; // all at once: a character may be several tokens
  const show = (ids, speed) => {
    written.push(...ids);
    $("text").value = tokeniser.decode(written, before);
    $("text").scrollTop = $("text").scrollHeight;
    $("speed").textContent = `${Math.round(speed).toLocaleString("en")} tokens/s`;
  };
  await write(30, show, temperature, top);
  writing = false;
  $("text").readOnly = false;
  $("write").disabled = false;
  $("stop").disabled = true;
  await update();
}

// For tests and for the curious, in the browser's console: rnnnas.perplexity("some text").
window.rnnnas = {
  ready: false,
  header,
  // Perplexity of all tokens of a text that follows a line end.
  perplexity(text) {
    return perplexityOf(rnnnas.nats(tokeniser.encode(text).map((t) => t.id)));
  },
  tokens: (text) => tokeniser.encode(text).map((t) => t.id),
  decode: (ids) => tokeniser.decode(ids, ""),
  nats(ids) {
    let states = model.step(header.tokeniser.eos, model.start());
    return ids.map((id) => {
      const nats = -model.logProbs(states)[id];
      states = model.step(id, states);
      return nats;
    });
  },
  next(text, count) {
    let states = model.step(header.tokeniser.eos, model.start());
    for (const { id } of tokeniser.encode(text)) states = model.step(id, states);
    return best(model.logProbs(states), count, new Set());
  },
  // Tokens written a second, of `count`.
  benchmark(count) {
    let states = model.step(header.tokeniser.eos, model.start());
    const begun = performance.now();
    for (let i = 0; i < count; i++)
      states = model.step(drawn(model.logProbs(states), 1, 0, without), states);
    return (1000 * count) / (performance.now() - begun);
  },
};

async function begin() {
  await pause(); // let the page be seen first
  const weights = new Weights(header.tensors, base64("weights"), base64("kernels"));
  model = new LanguageModel(header.shape, weights);
  rnnnas.simd = weights.simd;
  const { ids, nats } = header.check;
  const found = rnnnas.nats(ids).reduce((sum, x) => sum + x, 0);
  const off = Math.abs(found - nats) / ids.length, good = off < 1e-3;
  rnnnas.check = { found, expected: nats, good };
  const value = (total) => Math.exp(total / ids.length).toFixed(2);
  $("state").textContent = good
    ? `Checked: this browser gives ${ids.length} tokens the probabilities that torch gives them.`
    : `This browser finds perplexity ${value(found)} for ${ids.length} tokens where torch finds ` +
      `${value(nats)}: do not rely on it.`;
  $("state").className = good ? "good" : "bad";
  $("text").addEventListener("input", update);
  $("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) onWrite();
  });
  $("write").addEventListener("click", onWrite);
  $("stop").addEventListener("click", () => { writing = false; });
  $("clear").addEventListener("click", () => {
    writing = false;
    $("text").value = "";
    $("text").focus();
    update();
  });
  $("temperature").addEventListener("input", () => {
    $("temperature-value").textContent = Number($("temperature").value).toFixed(2).replace(/0$/, "");
  });
  await update();
  rnnnas.ready = true;
}

begin().catch((error) => {
  $("state").textContent = `The page cannot run here: ${error.message}`;
  $("state").className = "bad";
  throw error;
});
