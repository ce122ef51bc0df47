// The status page: polls the API and shows what it says. Every text goes in as text, never as markup.
"use strict";

const POLL = 5000;
const PAGE = 200;
const GOOD = new Set(["protected", "in_place", "tag_only", "excluded"]);
const BAD = new Set(["failed", "incomplete", "conflict", "denied"]);
const view = { images: [], limit: PAGE };
const $ = (id) => document.getElementById(id);

function element(name, text, className) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function size(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return unit ? `${count.toFixed(1)} ${units[unit]}` : `${count} B`;
}

function time(text) {
  return text ? new Date(text).toLocaleString() : "";
}

function tone(state) {
  return GOOD.has(state) ? "good" : BAD.has(state) ? "bad" : "wait";
}

function notice(text, bad) {
  $("notice").hidden = !text;
  $("notice").textContent = text;
  $("notice").classList.toggle("bad", Boolean(bad));
}

function login(wanted) {
  $("login").hidden = !wanted;
  if (wanted) $("content").hidden = true;
}

// The path is relative, so the page also works behind a proxy's prefix.
async function ask(path, method = "GET") {
  const headers = {};
  const token = sessionStorage.getItem("token");
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(path, { method, headers, cache: "no-store" });
  const body = await response.json();
  if (response.status === 401) {
    login(true);
    throw new Error(token ? body.message : "A token is needed.");
  }
  return { ok: response.ok, body };
}

function showStatus(status) {
  const role = status.leading ? "" : ` · standby, the leader is ${status.holder || "not elected yet"}`;
  const mode = status.mode ? ` · ${status.mode}` : "";
  $("about").textContent = `${status.version} → ${status.target}${mode}${role}`;
  $("coverage").value = status.total ? status.protected / status.total : 1;
  $("coverage-text").textContent =
    `${status.protected} of ${status.total} images have a copy · ${status.workloads} workloads · ${status.working} at work, ${status.queued} waiting`;
  const states = Object.entries(status.images).filter(([, count]) => count);
  $("states").replaceChildren(...states.map(([state, count]) => element("li", `${count} ${state}`, `state ${tone(state)}`)));
  $("uncovered").replaceChildren(...status.uncovered.map((text) => element("li", `not covered: ${text}`)));
  const known = new Set([...$("state").options].map((option) => option.value));
  for (const state of Object.keys(status.images)) {
    if (!known.has(state)) $("state").append(new Option(state, state));
  }
}

function showTransfers(transfers) {
  $("transfers-section").hidden = !transfers.length;
  $("transfers").replaceChildren(...transfers.map((transfer) => {
    const row = element("tr");
    const bar = element("progress");
    bar.max = Math.max(transfer.size, 1);
    bar.value = transfer.pushed;
    const cell = element("td");
    cell.append(bar);
    row.append(element("td", transfer.image), element("td", transfer.digest.slice(0, 19)), cell,
      element("td", size(transfer.pulled), "narrow"), element("td", size(transfer.pushed), "narrow"), element("td", size(transfer.size), "narrow"));
    return row;
  }));
}

function imageRow(image) {
  const row = element("tr");
  const state = element("td", image.state, `state ${tone(image.state)}`);
  if (image.protected && !GOOD.has(image.state)) state.append(element("div", "a copy stands", "quiet"));
  const names = element("td", image.source);
  names.append(element("div", `→ ${image.target}`, "quiet"));
  const digest = element("td");
  digest.append(element("code", image.digest));
  const users = element("td");
  for (const user of image.users.slice(0, 5)) users.append(element("div", `${user.kind} ${user.namespace}/${user.name}`));
  if (image.users.length > 5) users.append(element("div", `and ${image.users.length - 5} more`, "quiet"));
  const last = element("td", image.message || image.reason);
  if (image.unknownSince) last.append(element("div", `freshness unknown since ${time(image.unknownSince)}`, "quiet"));
  if (image.checked) last.append(element("div", `seen at the target ${time(image.checked)}`, "quiet"));
  row.append(state, names, digest, users, last, element("td", time(image.nextTry), "narrow"));
  return row;
}

function matches(image, words) {
  if (!words.length) return true;
  const users = image.users.map((user) => `${user.kind} ${user.namespace}/${user.name}`);
  const text = [image.source, image.target, image.digest, image.state, image.reason, image.message, ...image.spellings, ...image.running, ...users].join(" ").toLowerCase();
  return words.every((word) => text.includes(word));
}

function showImages() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const state = $("state").value;
  const only = $("unprotected").checked;
  const found = view.images.filter((image) => (!state || image.state === state) && !(only && image.protected) && matches(image, words));
  $("images").replaceChildren(...found.slice(0, view.limit).map(imageRow));
  $("shown").textContent = `${found.length} of ${view.images.length}`;
  $("more").hidden = found.length <= view.limit;
}

async function refresh() {
  const status = await ask("api/v1/status");
  if (!status.ok) throw new Error(status.body.message);
  login(false);
  $("content").hidden = false;
  showStatus(status.body);
  if (!status.body.leading) {
    view.images = [];
    showTransfers([]);
  } else {
    const [images, transfers] = await Promise.all([ask("api/v1/images"), ask("api/v1/transfers")]);
    if (!images.ok) throw new Error(images.body.message);
    view.images = images.body.images;
    showTransfers(transfers.body.transfers || []);
  }
  showImages();
}

async function poll() {
  try {
    await refresh();
    if ($("notice").dataset.from === "poll") notice("");
    $("notice").dataset.from = "";
  } catch (error) {
    $("notice").dataset.from = "poll";
    notice(error instanceof TypeError ? "No answer from k8s-copycat; trying again." : error.message, true);
  }
}

async function loop() {
  if (!document.hidden && $("login").hidden) await poll();
  setTimeout(loop, POLL);
}

async function act(button, path) {
  button.disabled = true;
  $("notice").dataset.from = "action";
  notice("Working …");
  try {
    const answer = await ask(path, "POST");
    notice(answer.body.message, !answer.ok || answer.body.success === false);
  } catch (error) {
    notice(error.message, true);
  }
  button.disabled = false;
}

function again() {
  view.limit = PAGE;
  showImages();
}

$("force").addEventListener("click", () => act($("force"), "force-reconcile"));
$("reset").addEventListener("click", () => act($("reset"), "reset-cooldown"));
$("search").addEventListener("input", again);
$("state").addEventListener("change", again);
$("unprotected").addEventListener("change", again);
$("more").addEventListener("click", () => { view.limit += PAGE; showImages(); });
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value.trim());
  $("token").value = "";
  poll();
});
loop();
