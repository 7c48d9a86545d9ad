"use strict";

const at = (id) => document.getElementById(id);
const digits = (value, count = 3) => (value === null ? "-" : Number(value.toPrecision(count)).toString());
const place = { x: 0.5, y: 0.5 };
let model = null;
let pictureUrl = null;
let running = null;  // timer of "Let time run"
const newest = { predict: 0, heat: 0 };  // answers to older questions are dropped

async function ask(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Error("the program does not answer: is it still running?");
  }
  const answer = await response.json().catch(() => ({ error: `the program answered with status ${response.status}` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function element(kind, text, parent) {
  const made = document.createElement(kind);
  made.textContent = text;
  parent.append(made);
  return made;
}

function complain(id, text) {
  at(id).textContent = text;
  at(id).hidden = !text;
}

// --- prediction ------------------------------------------------------------------------------------------

async function choose(file) {
  const turn = ++newest.predict;
  clear();
  if (pictureUrl) URL.revokeObjectURL(pictureUrl);
  pictureUrl = URL.createObjectURL(file);
  for (const id of ["chosen", "under"]) {
    at(id).hidden = true;
    at(id).src = pictureUrl;
  }
  at("invitation").hidden = false;
  if (model && file.size > model.max_bytes) {
    complain("error", `the file is too large: it has ${file.size} bytes, and at most ${model.max_bytes} are taken`);
    return;
  }
  at("status").textContent = `predicting ${file.name} ...`;
  try {
    const body = new Blob([file]);
    const answer = await ask("predict", { method: "POST", body, headers: { "Content-Type": "application/octet-stream" } });
    if (turn === newest.predict) show(answer, file.name);
  } catch (error) {
    if (turn !== newest.predict) return;
    at("status").textContent = "";
    complain("error", error.message);
  }
}

function clear() {
  complain("error", "");
  for (const id of ["status", "text", "tabs", "classes", "legend"]) at(id).replaceChildren();
  at("shown").hidden = true;
}

function show(answer, name) {
  at("status").textContent = name;
  at("text").textContent = answer.text;
  answer.pictures.forEach((one, i) => {
    const button = element("button", one.caption, at("tabs"));
    button.type = "button";
    button.onclick = () => {
      for (const other of at("tabs").children) other.setAttribute("aria-pressed", other === button);
      at("shown").src = one.picture;
      at("shown").hidden = false;
    };
    if (i === 0) button.click();
  });
  for (const one of answer.classes) {
    const row = element("div", "", at("classes"));
    row.className = "class";
    element("span", one.name, row);
    const meter = element("meter", "", row);
    meter.value = one.score === null ? 1 : one.score;
    element("span", one.score === null ? "first" : `${(100 * one.score).toFixed(1)} %`, row);
  }
  for (const one of answer.legend) {
    const entry = element("li", "", at("legend"));
    const sample = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    sample.style.background = `rgb(${one.colour.join(",")})`;
    entry.append(sample, `${one.name} ${one.share < 0.0005 ? "< 0.1" : (100 * one.share).toFixed(1)} %`);
  }
}

function listen() {
  at("file").onchange = () => {
    if (at("file").files.length) choose(at("file").files[0]);
    at("file").value = "";  // so that the same file can be chosen again
  };
  for (const id of ["chosen", "under"]) {
    at(id).onload = () => {
      at(id).hidden = false;
      at("invitation").hidden = true;
      shape();
    };
  }
  // A file that misses the frame would otherwise take the page's place.
  for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
  for (const kind of ["dragenter", "dragover"]) at("drop").addEventListener(kind, () => at("drop").classList.add("over"));
  for (const kind of ["dragleave", "drop"]) at("drop").addEventListener(kind, () => at("drop").classList.remove("over"));
  at("drop").addEventListener("drop", (event) => {
    if (event.dataTransfer.files.length) choose(event.dataTransfer.files[0]);
  });
}

// --- heat ------------------------------------------------------------------------------------------------

const blocksOf = (stage) => model.heat.blocks.filter((one) => one.stage === stage);
const block = () => blocksOf(Number(at("stage").value))[Number(at("block").value) - 1];
const time = () => model.heat.times[Number(at("time").value)];

function shape() {
  // Without a picture, the map has the shape that the model is made for.
  at("map").style.aspectRatio = at("under").hidden ? `${model.heat.size[1]} / ${model.heat.size[0]}` : "auto";
}

function setStage() {
  const count = blocksOf(Number(at("stage").value)).length;
  at("block").max = count;
  at("block").value = count;
  at("block").disabled = count === 1;
  setBlock();
}

function setBlock() {
  const one = block();
  at("k-figure").hidden = one.k === null;
  at("stage-value").textContent = `${one.stage} of ${at("stage").max}`;
  at("block-value").textContent = `${one.block} of ${at("block").max}`;
  const rows = [
    ["map", `${one.patches.join(" x ")} patches`],
    ["one patch", `${digits(one.stride)} pixels`],
    ["reach (sigma)", one.reach === null ? "none: negative lobes" : `${digits(one.reach)} patches`],
    ["", one.reach === null ? "" : `${digits(one.reach_pixels)} pixels`],
  ];
  if (one.k === null) {
    rows.unshift(["k", "not known: this filter is not positive"]);
  } else {
    at("k").src = one.k.picture;
    at("k").style.aspectRatio = `${one.patches[1]} / ${one.patches[0]}`;
    at("k-high").textContent = `${digits(one.k.highest)} patches²`;
    rows.unshift(
      ["mean", `${digits(one.k.mean)} patches²`],
      ["10 / 50 / 90 %", one.k.quantiles.map((value) => digits(value, 2)).join(" / ")],
      ["share that is 0", `${(100 * one.k.share_of_zeros).toFixed(1)} %`],
    );
  }
  at("k-numbers").replaceChildren();
  for (const [name, value] of rows) {
    const row = element("tr", "", at("k-numbers"));
    element("td", name, row);
    element("td", value, row);
  }
  spread();
}

async function spread() {
  const turn = ++newest.heat;
  at("time-value").textContent = digits(time());
  at("place").style.left = `${100 * place.x}%`;
  at("place").style.top = `${100 * place.y}%`;
  const question = { block: model.heat.blocks.indexOf(block()), y: place.y, x: place.x, time: time() };
  try {
    const answer = await ask(`heat?${new URLSearchParams(question)}`);
    if (turn !== newest.heat) return;
    complain("heat-error", "");
    at("veil").src = answer.picture;
    at("heat-low").textContent = `-${digits(answer.largest)}`;
    at("heat-faint").textContent = `below ±${digits(answer.largest / 1000, 2)}`;
    at("heat-high").textContent = digits(answer.largest);
    at("heat-numbers").textContent =
      `From patch (${answer.patch.join(", ")}), t = ${digits(time())}: peak ${digits(answer.peak)}, ` +
      `minimum ${digits(answer.minimum, 2)}, sum ${digits(answer.sum)}. ` +
      `The picture stands for an input of ${model.heat.size.join(" x ")} pixels (height x width).`;
  } catch (error) {
    if (turn === newest.heat) complain("heat-error", error.message);
  }
}

function stop() {
  clearInterval(running);
  running = null;
  at("play").textContent = "Let time run";
}

function play() {
  if (running) return stop();
  const slider = at("time");
  slider.value = 0;
  spread();
  at("play").textContent = "Stop";
  running = setInterval(() => {
    slider.value = Number(slider.value) + 1;
    spread();
    if (slider.value === slider.max) stop();
  }, 450);
}

function showHeat() {
  at("heat").hidden = false;
  at("stage").max = Math.max(...model.heat.blocks.map((one) => one.stage));
  at("stage").value = 1;
  at("time").max = model.heat.times.length - 1;
  at("time").value = model.heat.times.indexOf(1);
  at("stage").oninput = setStage;
  at("block").oninput = setBlock;
  at("time").oninput = () => { stop(); spread(); };
  at("play").onclick = play;
  at("map").onclick = (event) => {
    const frame = at("map").getBoundingClientRect();
    place.x = Math.min(Math.max((event.clientX - frame.left) / frame.width, 0), 1);
    place.y = Math.min(Math.max((event.clientY - frame.top) / frame.height, 0), 1);
    spread();
  };
  shape();
  setStage();
}

async function start() {
  listen();
  try {
    model = await ask("model");
  } catch (error) {
    complain("error", error.message);
    return;
  }
  at("title").textContent = model.title;
  at("facts").textContent = model.facts.join(" · ");
  if (model.heat) {
    showHeat();
  } else {
    at("no-heat").hidden = false;
    at("why").textContent = model.why_no_heat;
  }
}

start();
