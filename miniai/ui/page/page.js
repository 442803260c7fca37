"use strict";

const find = (id) => document.getElementById(id);
const form = find("order");
const NUMBERS = [
  "n", "seed", "steps", "guidance_scale", "strength", "mask_padding", "width", "height", "guidance_rescale", "eta", "clip_skip",
  "cache_interval",
];
const TEXTS = ["prompt", "negative_prompt", "sampler", "prompt_syntax", "long_prompts"];
let settings = {};
let running = null; // the AbortController of the order that is being painted
let start = null; // the picture to start from, as a canvas of its own size
let drawn = null; // where something new is to be painted: strokes on nothing, as large
let earlier = []; // the drawing as it was before each of the last strokes
let tip = [0, 0]; // where the brush was last
let shown = null; // the picture in the dialog

function element(name, properties = {}, ...children) {
  const one = Object.assign(document.createElement(name), properties);
  one.append(...children);
  return one;
}

function say(text, isError = false) {
  find("message").textContent = text;
  find("message").classList.toggle("error", isError);
}

// What can be chosen

async function begin() {
  settings = await (await fetch("api/settings")).json();
  find("model").textContent = `${settings.model}, ${settings.size} × ${settings.size} pixels`;
  find("now").style.setProperty("--side", `${Math.min(512, Math.max(230, settings.size))}px`);
  for (const { name, title } of settings.samplers) form.sampler.append(element("option", { value: name, textContent: title }));
  for (const style of settings.styles) find("style").append(element("option", { value: style, textContent: style }));
  find("style-row").hidden = !settings.styles.length;
  for (const word of settings.words) {
    const add = element("button", { type: "button", className: "word", textContent: word });
    add.addEventListener("click", () => { form.prompt.setRangeText(word); form.prompt.focus(); });
    find("words").append(add);
    find("words").hidden = false;
  }
  for (const { name, strength } of settings.loras) {
    const number = element("input", { type: "number", step: "any", min: -100, max: 100, value: strength, required: true });
    number.dataset.lora = name;
    number.dataset.given = strength;
    find("loras").append(element("label", {}, `Strength of ${name}`, number));
  }
  for (const name of ["width", "height"]) Object.assign(form[name], { step: settings.multiple, placeholder: settings.size });
  for (const [name, value] of Object.entries(settings.defaults)) form[name].value = value;
  recall();
  await showBefore();
}

// What is typed outlives a reload.

const typed = () => [...form.querySelectorAll("input, select, textarea")].filter((one) => one.type !== "file");
const key = (one, i) => one.name || one.id || one.dataset.lora || i;

function keep() {
  sessionStorage.setItem("typed", JSON.stringify(typed().map((one, i) => [key(one, i), one.value])));
}

function recall() {
  const kept = new Map(JSON.parse(sessionStorage.getItem("typed") || "[]"));
  typed().forEach((one, i) => { if (kept.has(key(one, i))) one.value = kept.get(key(one, i)); });
}

async function showBefore() {
  const pictures = await (await fetch("api/pictures")).json();
  find("before").replaceChildren(...pictures.map(button));
}

// An order

function order() {
  const asked = {};
  for (const name of NUMBERS) {
    if (form[name].value !== "") asked[name] = Number(form[name].value);
  }
  for (const name of TEXTS) {
    if (form[name].value !== "") asked[name] = form[name].value;
  }
  asked.prompt = form.prompt.value.trim();
  const style = find("style").value;
  if (style) asked.prompt += `, ${style} style`;
  const [above, upTo] = [form.guide_above.value, form.guide_up_to.value];
  if (above !== "" || upTo !== "") asked.guidance_interval = [Number(above), upTo === "" ? 1e9 : Number(upTo)];
  asked.loras = [...find("loras").querySelectorAll("input")].map((range) => [range.dataset.lora, Number(range.value)]);
  if (start) {
    asked.image = start.toDataURL("image/png");
    if (isDrawn()) asked.mask = mask().toDataURL("image/png");
  } else {
    delete asked.strength;
  }
  if (!asked.mask) delete asked.mask_padding;
  return asked;
}

async function paint() {
  if (running) return;
  running = new AbortController();
  find("paint").ariaDisabled = "true"; // and not disabled, which would take the focus away
  find("stop").disabled = false;
  find("progress").hidden = false;
  find("progress").removeAttribute("value"); // it waits
  say("");
  find("notices").replaceChildren();
  try {
    const answer = await fetch("api/paint", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(order()),
      signal: running.signal,
    });
    if (!answer.ok) throw new Error((await answer.json()).message);
    let last = {};
    for await (const news of lines(answer.body)) hear((last = news));
    if (!["done", "error", "stopped"].includes(last.event)) throw new Error("the program ended before the picture was done");
  } catch (error) {
    if (error.name === "AbortError") say("stopped");
    else if (error instanceof TypeError) say(`the program does not answer: ${error.message}`, true);
    else say(error.message, true);
  } finally {
    running = null;
    find("paint").ariaDisabled = "false";
    if (document.activeElement === find("stop")) find("paint").focus();
    find("stop").disabled = true;
    find("progress").hidden = true;
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

function hear(news) {
  if (news.event === "step") {
    find("progress").max = news.n_steps;
    find("progress").value = news.step;
    if (news.step === 1 || news.step % 5 === 0) say(`step ${news.step} of ${news.n_steps}`);
    if (news.preview) find("now").replaceChildren(element("img", { src: news.preview, alt: "the picture so far" }));
  } else if (news.event === "waiting") {
    say("another picture is being painted first");
  } else if (news.event === "notice") {
    find("notices").append(element("p", { textContent: news.message }));
  } else if (news.event === "done") {
    say(`seed ${news.seed}`);
    find("now").replaceChildren(...news.pictures.map(button));
    showBefore();
  } else if (news.event === "stopped") {
    say("stopped");
  } else {
    say(news.message, true);
  }
}

// Pictures

const address = (picture) => `pictures/${encodeURIComponent(picture.name)}?${picture.time}`;

function button(picture) {
  const image = element("img", { src: address(picture), alt: picture.settings.prompt || picture.name, loading: "lazy" });
  const one = element("button", { type: "button", title: picture.settings.prompt || picture.name }, image);
  one.addEventListener("click", () => show(picture));
  return one;
}

function show(picture) {
  shown = picture;
  Object.assign(find("shown-image"), { src: address(picture), alt: picture.name });
  find("shown-text").textContent = picture.parameters || picture.name;
  find("download").href = address(picture);
  find("again").disabled = !("prompt" in picture.settings);
  find("shown").showModal();
}

function takeSettings() {
  const own = shown.settings;
  for (const name of [...NUMBERS, ...TEXTS]) {
    if (name !== "n") form[name].value = own[name] ?? "";
  }
  for (const name of ["prompt_syntax", "long_prompts"]) form[name].value = own[name] ?? form[name].options[0].value;
  [form.guide_above.value, form.guide_up_to.value] = own.guidance_interval ?? ["", ""];
  const strengths = new Map(own.loras ?? []);
  for (const number of find("loras").querySelectorAll("input")) number.value = strengths.get(number.dataset.lora) ?? 0;
  const title = own.sampler;
  const known = settings.samplers.find((one) => one.title === title);
  if (!known && ![...form.sampler.options].some((one) => one.value === title)) {
    form.sampler.append(element("option", { value: title, textContent: title })); // such as DPM++ 2M Karras
  }
  form.sampler.value = known ? known.name : title;
  find("style").value = ""; // it stands in the prompt
  keep();
  find("shown").close();
}

// A picture to start from, and the drawing on it

async function startFrom(source) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(source);
  } catch {
    return say("this file is no picture that a browser can read", true);
  }
  const scale = Math.min(1, (settings.size * 2) / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => fitted(side * scale));
  if (scale < 1) say(`the picture is taken at ${width} × ${height} pixels, which this model can paint`);
  form.width.value = form.height.value = ""; // of another picture; this one is painted as large as it is
  start = element("canvas", { width, height });
  const draw = start.getContext("2d");
  draw.fillStyle = "#ffffff"; // what is transparent is white
  draw.fillRect(0, 0, width, height);
  draw.imageSmoothingQuality = "high";
  draw.drawImage(bitmap, 0, 0, width, height);
  clearDrawing();
  find("start").open = true;
  find("canvas-box").hidden = false;
}

const fitted = (side) => Math.max(settings.multiple, Math.round(side / settings.multiple) * settings.multiple);

function clearDrawing() {
  drawn = element("canvas", { width: start.width, height: start.height });
  earlier = [];
  redraw();
}

function undo() {
  if (earlier.length) drawn.getContext("2d").putImageData(earlier.pop(), 0, 0);
  redraw();
}

const strokes = () => drawn.getContext("2d").getImageData(0, 0, drawn.width, drawn.height);
const isDrawn = () => strokes().data.some((value, i) => i % 4 === 3 && value > 0);

function redraw() {
  const canvas = find("canvas");
  Object.assign(canvas, { width: start.width, height: start.height });
  const draw = canvas.getContext("2d");
  draw.drawImage(start, 0, 0);
  draw.globalAlpha = 0.6;
  draw.drawImage(drawn, 0, 0);
  find("undo").disabled = !earlier.length;
}

// White where it is drawn, black elsewhere.
function mask() {
  const canvas = element("canvas", { width: drawn.width, height: drawn.height });
  const draw = canvas.getContext("2d");
  draw.drawImage(drawn, 0, 0);
  for (const [operation, colour] of [["source-in", "#ffffff"], ["destination-over", "#000000"]]) {
    draw.globalCompositeOperation = operation;
    draw.fillStyle = colour;
    draw.fillRect(0, 0, canvas.width, canvas.height);
  }
  return canvas;
}

function brush(event) {
  if (!start || !(event.buttons & 1)) return;
  const canvas = find("canvas");
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  if (event.type === "pointerdown") {
    canvas.setPointerCapture(event.pointerId);
    tip = [x, y];
    earlier = [...earlier.slice(-19), strokes()];
  }
  const draw = drawn.getContext("2d");
  Object.assign(draw, { strokeStyle: "#e0218a", lineCap: "round", lineWidth: (find("brush").value / 50) * canvas.width });
  draw.globalCompositeOperation = find("erase").checked ? "destination-out" : "source-over";
  draw.beginPath();
  draw.moveTo(...tip);
  draw.lineTo(x, y);
  draw.stroke();
  tip = [x, y];
  redraw();
}

function takeAway() {
  start = drawn = null;
  find("file").value = "";
  find("canvas-box").hidden = true;
}

// Who hears what

form.addEventListener("submit", (event) => { event.preventDefault(); paint(); });
form.prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); paint(); }
});
form.addEventListener("invalid", (event) => {
  const around = event.target.closest("details");
  if (around) around.open = true; // the browser's word for it needs a place
}, true);
form.addEventListener("input", keep);
window.addEventListener("beforeunload", (event) => { if (running) event.preventDefault(); });
find("stop").addEventListener("click", () => running?.abort());
find("file").addEventListener("change", () => { if (find("file").files.length) startFrom(find("file").files[0]); });
for (const name of ["pointerdown", "pointermove"]) find("canvas").addEventListener(name, brush);
find("undo").addEventListener("click", undo);
find("clear-mask").addEventListener("click", clearDrawing);
find("clear-image").addEventListener("click", takeAway);
find("close").addEventListener("click", () => find("shown").close());
find("again").addEventListener("click", takeSettings);
find("from-it").addEventListener("click", () => { startFrom(find("shown-image")); find("shown").close(); });
document.addEventListener("paste", (event) => {
  const image = [...event.clipboardData.files].find((file) => file.type.startsWith("image/"));
  if (image) startFrom(image);
});
const hasFiles = (event) => event.dataTransfer.types.includes("Files"); // text may be dropped where it always may
document.addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
document.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  if (event.dataTransfer.files.length) startFrom(event.dataTransfer.files[0]);
});

begin().catch((error) => say(`the page cannot reach its program: ${error.message}`, true));
