"use strict";
// What both kinds of pages share: the data in the page, and small helpers.

const $ = (id) => document.getElementById(id);
const pause = () => new Promise((done) => setTimeout(done));
const percent = (p) => `${(100 * p).toFixed(p < 0.001 ? 3 : p < 0.1 ? 2 : 1)} %`;
const header = JSON.parse($("header").textContent);

function base64(id) {
  const text = atob($(id).textContent), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

function halfToFloat(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, rest = bits & 1023;
  if (exponent === 0) return sign * rest * 2 ** -24;
  return sign * (1 + rest / 1024) * 2 ** (exponent - 15);
}
