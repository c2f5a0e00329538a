// The page over /api: nothing of a file, a column or an error is ever put in as markup, only as text.
"use strict";

const $ = (id) => document.getElementById(id);
const state = { gallery: null, file: null, picture: null, box: null, drag: null, asked: 0 };

// ---- the server ----------------------------------------------------------------------------------------------------

// The token comes behind # in the address that the server prints, which browsers send to nobody.
function token() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("token", given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem("token");
}

async function api(path, options = {}) {
  const headers = { ...options.headers };
  if (token()) headers.Authorization = `Bearer ${token()}`;
  let response;
  try {
    response = await fetch(`/api/${path}`, { ...options, headers });
  } catch {
    throw new Error("The server does not answer. Is tools/serve.py still running?");
  }
  if (response.ok) return response;
  const found = await response.json().catch(() => ({}));
  throw new Error(found.detail ?? `The server answered ${response.status}.`);
}

function say(problem) {
  $("problem").hidden = !problem;
  $("problem").textContent = problem ?? "";
}

// ---- the person ----------------------------------------------------------------------------------------------------

async function take(file) {
  say();
  if (!file) return;
  if (file.size > state.gallery.max_bytes) {
    say(`${file.name} has ${(file.size / 2 ** 20).toFixed(1)} MiB; at most ${state.gallery.max_bytes / 2 ** 20} are taken.`);
    return;
  }
  try {
    state.picture = await createImageBitmap(file);
  } catch {
    say(`${file.name} is no image that this browser can show. Take a JPEG, PNG or WebP file.`);
    return;
  }
  state.file = file;
  $("preview").hidden = false;
  $("search").disabled = false;
  setBox(null);
}

function setBox(box) {
  state.box = box;
  if (document.activeElement !== $("box")) $("box").value = box ? box.join(", ") : "";
  const canvas = $("frame"), picture = state.picture, context = canvas.getContext("2d");
  canvas.width = picture.width;
  canvas.height = picture.height;
  context.drawImage(picture, 0, 0);
  if (!box) return;
  const [x1, y1, x2, y2] = box;
  context.fillStyle = "#0008";
  context.beginPath();
  context.rect(0, 0, picture.width, picture.height);
  context.rect(x1, y1, x2 - x1, y2 - y1);
  context.fill("evenodd");
  context.lineWidth = Math.max(1, picture.width / 300);
  context.strokeStyle = "#ffd23f";
  context.strokeRect(x1, y1, x2 - x1, y2 - y1);
}

function typedBox() {
  const numbers = $("box").value.split(/[\s,;]+/).filter(Boolean).map(Number);
  if (!numbers.length) return setBox(null);
  const whole = numbers.length === 4 && numbers.every((n) => Number.isFinite(n) && n >= 0);
  if (whole && numbers[2] > numbers[0] && numbers[3] > numbers[1]) setBox(numbers.map(Math.round));
}

function place(event) {
  const seen = $("frame").getBoundingClientRect(), picture = state.picture;
  const within = (value, length) => Math.round(Math.min(Math.max(value, 0), 1) * length);
  return [
    within((event.clientX - seen.left) / seen.width, picture.width),
    within((event.clientY - seen.top) / seen.height, picture.height),
  ];
}

function drawBox() {
  const canvas = $("frame");
  canvas.addEventListener("pointerdown", (event) => {
    state.drag = place(event);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!state.drag) return;
    const [x, y] = place(event), [x0, y0] = state.drag;
    setBox([Math.min(x, x0), Math.min(y, y0), Math.max(x, x0), Math.max(y, y0)]);
  });
  canvas.addEventListener("pointerup", () => {
    state.drag = null;
    // a click without a box is no box
    if (state.box && (state.box[2] - state.box[0] < 2 || state.box[3] - state.box[1] < 2)) setBox(null);
  });
}

// ---- searching -----------------------------------------------------------------------------------------------------

function wanted() {
  const query = new URLSearchParams({ k: $("k").value || "12" });
  if (state.box) query.set("box", state.box.join(","));
  for (const name of $("camera").value.split(",").map((part) => part.trim()).filter(Boolean)) query.append("camera", name);
  for (const name of ["after", "before", "from_clock", "to_clock"]) if ($(name).value) query.set(name, $(name).value);
  if ($("where").value.trim()) query.set("where", $("where").value.trim());
  if ($("attention").checked) query.set("attention", "true");
  return query;
}

async function search(event) {
  event.preventDefault();
  if (!state.file) return;
  say();
  const number = ++state.asked;
  $("search").disabled = true;
  try {
    const response = await api(`query?${wanted()}`, {
      method: "POST",
      body: state.file,
      headers: { "Content-Type": state.file.type || "application/octet-stream" },
    });
    const answer = await response.json();
    if (number === state.asked) show(answer);
  } catch (error) {
    $("answer").hidden = true;
    say(error.message);
  } finally {
    $("search").disabled = false;
  }
}

// ---- the answer ----------------------------------------------------------------------------------------------------

const percent = (share) => `${Math.round(100 * share)} % of the person seen`;

function verdict(answer) {
  if (!answer.matches.length) return "Nobody: no image passes the filter.";
  const best = answer.matches[0].similarity.toFixed(3);
  if (answer.nobody === null) return `The ${answer.matches.length} most similar images (no threshold is set)`;
  const limit = answer.threshold.toFixed(3);
  if (answer.nobody) return `Nobody: the best similarity is ${best}, below the threshold of ${limit}.`;
  const same = answer.matches.filter((match) => match.same_person).length;
  return `Probably this person: ${same} of ${answer.matches.length} images reach the threshold of ${limit}.`;
}

function show(answer) {
  $("verdict").textContent = verdict(answer);
  $("verdict").className = answer.nobody || !answer.matches.length ? "nobody" : "";
  showAsked(answer);
  showTimeline(answer.matches);
  const list = $("matches");
  for (const image of list.querySelectorAll("img")) URL.revokeObjectURL(image.src);
  list.replaceChildren(...answer.matches.map(card));
  $("answer").hidden = false;
  $("verdict").focus();
}

function showAsked(answer) {
  const [x1, y1, x2, y2] = state.box ?? [0, 0, state.picture.width, state.picture.height];
  const crop = document.createElement("canvas");
  crop.width = x2 - x1;
  crop.height = y2 - y1;
  crop.getContext("2d").drawImage(state.picture, x1, y1, x2 - x1, y2 - y1, 0, 0, x2 - x1, y2 - y1);
  const picture = document.createElement("span"), image = document.createElement("img"), map = document.createElement("canvas");
  picture.className = "picture";
  image.alt = "The person asked for";
  crop.toBlob((blob) => { image.src = URL.createObjectURL(blob); image.onload = () => URL.revokeObjectURL(image.src); });
  picture.append(image, map);
  paint(map, answer.attention);
  const about = document.createElement("p");
  about.className = "soft";
  about.textContent = [
    `The person asked for, ${answer.width} x ${answer.height} pixels`,
    answer.visibility === null ? "" : percent(answer.visibility),
    $("attention").checked && !answer.attention ? "this model has no map of where it looks" : "",
  ].filter(Boolean).join("; ");
  $("asked").replaceChildren(picture, about);
}

function card(match) {
  const item = $("match").content.firstElementChild.cloneNode(true);
  item.id = `match-${match.rank}`;
  item.classList.toggle("below", match.same_person === false);
  const text = (name, value) => { item.querySelector(`.${name}`).textContent = value; };
  text("similarity", `${match.rank}. ${match.similarity.toFixed(3)}`);
  text("verdict", match.same_person === null ? "" : match.same_person ? "same person" : "below the threshold");
  text("about", [
    match.camera === null ? "" : `camera ${match.camera}`,
    match.time === null ? "" : moment(match.time),
    match.track === null ? "" : `track ${match.track}`,
    match.visibility === null ? "" : percent(match.visibility),
    ...Object.entries(match.values).filter(([, value]) => value !== null).map(([name, value]) => `${name} ${value}`),
  ].filter(Boolean).join(", "));
  text("name", match.id);
  fill(item, match);
  return item;
}

async function fill(item, match) {
  const image = item.querySelector("img"), id = new URLSearchParams({ id: match.id });
  image.alt = `Match ${match.rank}, similarity ${match.similarity.toFixed(3)}`;
  try {
    image.src = URL.createObjectURL(await (await api(`crop?${id}`)).blob());
    if ($("attention").checked) {
      const look = await (await api(`look?${id}`)).json();
      paint(item.querySelector("canvas"), look.attention);
      const about = item.querySelector(".about");
      if (look.visibility !== null && match.visibility === null)
        about.textContent = [about.textContent, percent(look.visibility)].filter(Boolean).join(", ");
    }
  } catch (error) {
    image.alt = error.message;
  }
}

// Weights of patches as a transparent map: red where the model looks most.
function paint(canvas, weights) {
  canvas.hidden = !weights;
  if (!weights) return;
  const h = weights.length, w = weights[0].length, largest = Math.max(...weights.flat());
  canvas.width = w;
  canvas.height = h;
  const context = canvas.getContext("2d"), pixels = context.createImageData(w, h);
  weights.flat().forEach((weight, i) => {
    const share = weight / (largest || 1);
    pixels.data.set([255, Math.round(190 * (1 - share)), 0, Math.round(255 * share)], 4 * i);
  });
  context.putImageData(pixels, 0, 0);
}

const moment = (text) => text.replace("T", " ").replace(/(\.\d+)?(Z|\+00:00)$/, "");

// A row for each camera, a point for each match that has a time.
function showTimeline(matches) {
  const there = matches.filter((match) => match.time !== null);
  const box = $("timeline");
  box.replaceChildren();
  if (!there.length) return;
  const cameras = [...new Set(there.map((match) => match.camera ?? "?"))].sort(new Intl.Collator("en", { numeric: true }).compare);
  const times = there.map((match) => Date.parse(match.time)), first = Math.min(...times), last = Math.max(...times);
  const left = 110, width = 800, row = 26, height = row * cameras.length + 34;
  const x = (time) => left + (last > first ? (time - first) / (last - first) : 0.5) * (width - left - 20);
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Matches over time, a row for each camera" });
  cameras.forEach((camera, i) => {
    const y = row * i + 16;
    svg.append(element("line", { x1: left, x2: width - 10, y1: y, y2: y }));
    const shown = camera.length > 14 ? `${camera.slice(0, 13)}…` : camera;
    svg.append(element("text", { x: 0, y: y + 4 }, `camera ${shown}`));
  });
  for (const match of there) {
    const link = element("a", { href: `#match-${match.rank}`, class: match.same_person === false ? "below" : "" });
    const y = row * cameras.indexOf(match.camera ?? "?") + 16;
    const name = `match ${match.rank}, camera ${match.camera ?? "?"}, ${moment(match.time)}, similarity ${match.similarity.toFixed(3)}`;
    link.setAttribute("aria-label", name);
    const point = element("circle", { cx: x(Date.parse(match.time)), cy: y, r: match.rank === 1 ? 8 : 6 });
    point.append(element("title", {}, name));
    link.append(point);
    svg.append(link);
  }
  svg.append(element("text", { x: left, y: height - 6 }, moment(new Date(first).toISOString())));
  if (last > first) svg.append(element("text", { x: width - 10, y: height - 6, "text-anchor": "end" }, moment(new Date(last).toISOString())));
  box.append(svg);
}

function element(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

// ---- beginning -----------------------------------------------------------------------------------------------------

async function begin() {
  const gallery = state.gallery = await (await api("gallery")).json();
  const said = gallery.threshold === null ? "no threshold is set" : `the same person from ${gallery.threshold_source}`;
  $("gallery").textContent = `${gallery.images.toLocaleString("en")} images, compared by ${gallery.feature}; ${said}.`;
  const names = Object.keys(gallery.columns);
  $("columns").textContent = `Columns: ${names.join(", ") || "none"}. Times are the gallery's own (UTC).`;
  for (const line of document.querySelectorAll("[data-column]")) line.hidden = !names.includes(line.dataset.column);
  $("k").max = gallery.max_matches;

  $("file").addEventListener("change", () => take($("file").files[0]));
  const drop = $("drop");
  for (const name of ["dragenter", "dragover", "dragleave", "drop"])
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragenter" || name === "dragover");
    });
  drop.addEventListener("drop", (event) => take(event.dataTransfer.files[0]));
  $("box").addEventListener("change", typedBox);
  $("unbox").addEventListener("click", () => setBox(null));
  drawBox();
  $("form").addEventListener("submit", search);
}

begin().catch((error) => {
  $("gallery").textContent = "";
  say(error.message);
});
