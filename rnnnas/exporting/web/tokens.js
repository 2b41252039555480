"use strict";
// Text to tokens and back, by the tables of the page's header.

// What Python's str.split takes for white space.
const SPACE = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/u;
const MARK = "\u2581"; // how sentencepiece writes a space
const UNKNOWN_PENALTY = 10; // below the least score, as in sentencepiece

// The rules for punctuation: joiner marks say where two tokens stood together.
const JOINER = "\uffed", ESCAPE = "\uffec";
const MARKS = "(?!_)[\\p{P}\\p{S}]", LETTER = "(?:_|[^\\p{P}\\p{S}])", ALPHA = "[\\p{L}\\p{Nl}\\p{No}]";
const PIECE = new RegExp(
  `\\p{Nd}+(?:[.,:/]\\p{Nd}+)+(?!${LETTER})|(?:${ALPHA}\\.){2,}(?!${LETTER})` +
  `|${LETTER}+(?:['\u2019]${LETTER}+)*|(?<mark>${MARKS})\\k<mark>*`, "gu");
const CLITIC = new RegExp(`^(.*${ALPHA})(['\u2019](?:s|ll|re|ve|d|m|t))$`, "iu");
const ELISION = new RegExp(`^(${ALPHA}{1,2}['\u2019])(${ALPHA}.*)$`, "iu");

function byRules(chunk) {
  const parts = []; // [text, whether it takes the joiners of its sides]
  for (const found of chunk.matchAll(PIECE)) {
    const piece = found[0], clitic = CLITIC.exec(piece), elision = ELISION.exec(piece);
    if (found.groups.mark !== undefined) parts.push([piece, true]);
    else if (clitic) parts.push([clitic[1], false], [clitic[2], true]);
    else if (elision) parts.push([elision[1], true], [elision[2], false]);
    else parts.push([piece, false]);
  }
  const tokens = parts.map(([piece]) =>
    piece.replaceAll(ESCAPE, ESCAPE + "0").replaceAll(JOINER, ESCAPE + "1"));
  for (let i = 1; i < parts.length; i++)
    if (parts[i][1] || !parts[i - 1][1]) tokens[i] = JOINER + tokens[i];
    else tokens[i - 1] += JOINER;
  return tokens;
}

// A token of the rules without its marks: {text, left, right}, where it is joined.
function unmarked(token) {
  const left = token.length > 1 && token.startsWith(JOINER) ? 1 : 0;
  const right = token.length > 1 + left && token.endsWith(JOINER) ? 1 : 0;
  const text = token.slice(left, token.length - right)
    .replaceAll(ESCAPE + "1", JOINER).replaceAll(ESCAPE + "0", ESCAPE);
  return { text, left, right };
}

// A word that reads as the line end's token stands in the vocabulary with a backslash before it.
const escaped = (word) => (/^\\*<eos>$/.test(word) ? `\\${word}` : word);
const unescaped = (word) => (/^\\+<eos>$/.test(word) ? word.slice(1) : word);

class Tokeniser {
  constructor(tables) {
    this.tables = tables;
    this.index = new Map();
    const fixed = new Set([...(tables.fixed || []), ...(tables.bytes || [])]);
    this.longest = 1;
    tables.tokens.forEach((text, id) => {
      if (fixed.has(id)) return;
      this.index.set(text, id);
      this.longest = Math.max(this.longest, text.length);
    });
    if (tables.scores) this.least = Math.min(...tables.scores.filter((s, id) => !fixed.has(id)));
    this.byteOf = new Map((tables.bytes || []).map((id, byte) => [id, byte]));
  }

  // Tokens of a text: {id, text, space}, text as it stood and whether a space stands before it; a
  // line feed is the line end's token.
  encode(text) {
    const out = [], lines = text.split("\n");
    lines.forEach((line, i) => {
      const read = line.endsWith("\r") ? line.slice(0, -1) : line;
      for (const token of this.line(this.tables.lower ? read.toLowerCase() : read)) out.push(token);
      if (i < lines.length - 1) out.push({ id: this.tables.eos, text: "\n", space: false });
    });
    return out;
  }

  line(text) {
    const kind = this.tables.kind, known = (word) => {
      const id = this.index.get(word) ?? this.tables.unk;
      if (id === null) throw new Error(`The vocabulary lacks \u201c${word}\u201d, and has no word for that.`);
      return id;
    };
    if (kind === "pieces") return this.marked(text);
    if (kind === "bytes") return this.inBytes(text, (byte) => byte);
    if (kind === "characters")
      return Array.from(text, (c) => ({ id: known(c), text: c, space: false }));
    const chunks = text.split(SPACE).filter(Boolean);
    if (kind === "words")
      return chunks.map((word, i) => ({ id: known(escaped(word)), text: word, space: i > 0 }));
    const out = [];
    let glue = true;
    for (const chunk of chunks)
      for (const token of byRules(chunk)) {
        const { text: shown, left, right } = unmarked(token);
        out.push({ id: known(token), text: shown, space: !(glue || left) });
        glue = right;
      }
    return out;
  }

  // A text by its bytes; of a character of several, the first shows it.
  inBytes(text, id) {
    const encoder = new TextEncoder();
    return Array.from(text).flatMap((character) =>
      Array.from(encoder.encode(character), (byte, i) =>
        ({ id: id(byte), text: i ? "" : character, space: false })));
  }

  // Sentencepiece's own mark, where a text holds it, is spelt by its bytes.
  marked(text) {
    const bytes = this.tables.bytes, parts = bytes.length ? text.split(MARK) : [text];
    return parts.flatMap((part, i) => [
      ...(i ? this.inBytes(MARK, (byte) => bytes[byte]) : []),
      ...this.pieces(part.replaceAll(" ", MARK)),
    ]);
  }

  // The likeliest cut of a text into pieces (Kudo 2018, section 3.2): a best path from the left.
  pieces(text) {
    const marks = [0];
    for (const character of text) marks.push(marks[marks.length - 1] + character.length);
    const at = new Map(marks.map((place, i) => [place, i]));
    const score = new Float32Array(marks.length).fill(-Infinity);
    const from = new Int32Array(marks.length).fill(-1), by = new Int32Array(marks.length);
    score[0] = 0;
    for (let i = 0; i + 1 < marks.length; i++) {
      const reach = Math.min(text.length, marks[i] + this.longest);
      let single = false;
      for (let j = i + 1; j < marks.length && marks[j] <= reach; j++) {
        const id = this.index.get(text.slice(marks[i], marks[j]));
        if (id === undefined) continue;
        single = single || j === i + 1;
        const sum = Math.fround(score[i] + this.tables.scores[id]);
        if (sum > score[j]) { score[j] = sum; from[j] = i; by[j] = id; }
      }
      const other = Math.fround(score[i] + Math.fround(this.least - UNKNOWN_PENALTY));
      if (!single && other > score[i + 1]) { score[i + 1] = other; from[i + 1] = i; by[i + 1] = -1; }
    }
    const out = [];
    for (let j = marks.length - 1; j > 0; j = from[j]) {
      const part = text.slice(marks[from[j]], marks[j]), shown = part.replaceAll(MARK, " ");
      if (by[j] >= 0) out.push({ id: by[j], text: shown, space: false });
      else if (!this.tables.bytes.length)
        out.push({ id: this.tables.unk, text: shown, space: false });
      else out.push(...this.inBytes(part, (byte) => this.tables.bytes[byte]).reverse());
    }
    return out.reverse();
  }

  // How a token is shown by itself.
  shown(id) {
    const { eos, kind, tokens } = this.tables;
    if (id === eos) return "\u21b5";
    if (kind === "rules") return unmarked(tokens[id]).text;
    if (kind === "words") return unescaped(tokens[id]);
    const blank = kind === "characters" || kind === "bytes";
    return kind === "pieces" || blank ? tokens[id].replaceAll(blank ? " " : MARK, "\u2423") : tokens[id];
  }

  // The text of tokens that follow a text.
  decode(ids, before) {
    const { eos, kind, tokens, glue } = this.tables;
    let out = before, bytes = [], joined = false;
    const flush = () => {
      if (bytes.length) out += new TextDecoder().decode(new Uint8Array(bytes));
      bytes = [];
    };
    for (const id of ids) {
      if (kind === "bytes") { bytes.push(id); continue; }
      if (this.byteOf.has(id)) { bytes.push(this.byteOf.get(id)); continue; }
      flush();
      if (id === eos) { out += "\n"; joined = false; continue; }
      let text = kind === "pieces" ? tokens[id].replaceAll(MARK, " ") : tokens[id], left = 0, right = 0;
      if (kind === "rules") ({ text, left, right } = unmarked(text));
      if (kind === "words") text = unescaped(text);
      out += (out && !/\s$/u.test(out) && !joined && !left ? glue : "") + text;
      joined = Boolean(right);
    }
    flush();
    return out;
  }
}
