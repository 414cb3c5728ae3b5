// Asks the endpoint that serves this page, once as stated and, if there are conditions, once without them.
"use strict";

const at = (id) => document.getElementById(id);
let examples = [];

async function call(path, body) {
  const headers = { "content-type": "application/json" };
  if (at("token").value) headers.authorization = "Bearer " + at("token").value;
  const started = performance.now();
  const response = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  const content = await response.json().catch(() => ({}));
  if (!response.ok) {
    if (response.status === 401) at("access").open = true;
    const problems = (content.problems || []).map((one) => [one.field, one.message].filter(Boolean).join(": "));
    throw new Error([`status ${response.status}`, ...problems].join("\n"));
  }
  const stages = response.headers.get("server-timing") || "";
  return { content, stages, milliseconds: performance.now() - started };
}

async function start() {
  const { content } = await call("v1/release");
  at("release").textContent = content.release;
  at("size").textContent = content.num_items.toLocaleString("en");
  at("names").replaceChildren(...content.conditions.map((name) => new Option(name, name)));
  at("objectives").hidden = !content.objectives.length;
  at("weights").replaceChildren(...content.objectives.map(weightInput));
  examples = content.examples;
  const shown = examples.map((one, number) => new Option(`example ${number + 1}: ${one.history.length} events`, number));
  at("source").replaceChildren(...shown, new Option("typed or pasted", "typed"), new Option("a stored user", "user"));
  pick();
}

function pick() {
  const source = at("source").value;
  at("user-field").hidden = source !== "user";
  at("history-field").hidden = source === "user";
  const example = examples[source];
  if (example) {
    const events = example.history.map(({ title, ...event }) => event);
    at("history").value = "[\n" + events.map((event) => JSON.stringify(event)).join(",\n") + "\n]";
  }
  const titles = example ? example.history.map((event) => event.title || event.item_id).reverse() : [];
  at("titles").replaceChildren(...titles.map((title) => element("li", title)));
}

function readHistory() {
  const text = at("history").value.trim();
  if (!text.startsWith("[")) {
    return text.split(/\s*\n\s*/).filter(Boolean).map((item_id) => ({ item_id }));
  }
  try {
    return JSON.parse(text).map((event) => (typeof event === "object" ? event : { item_id: event }));
  } catch (error) {
    throw new Error("history: not a JSON list of events: " + error.message);
  }
}

function readConditions() {
  return [...at("conditions").children].map((row) => {
    const name = row.querySelector(".name").value.trim();
    return {
      ...(name ? { any_of: [name] } : { own_top: 1 }),
      weight: Number(row.querySelector(".weight").value),
      hard: row.querySelector(".hard").checked,
    };
  });
}

function weightInput(name) {
  const label = element("label", name + " ");
  const input = element("input", "");
  Object.assign(input, { type: "number", min: "0", step: "0.1", name });
  label.append(input);
  return label;
}

function readWeights() {
  const stated = [...at("weights").querySelectorAll("input")].filter((input) => input.value !== "");
  return stated.length ? Object.fromEntries(stated.map((input) => [input.name, Number(input.value)])) : null;
}

async function ask(event) {
  event.preventDefault();
  at("problem").textContent = "";
  at("ask").disabled = true;
  try {
    const source = at("source").value;
    const asked = { k: Number(at("k").value), exclude_seen: !at("seen").checked };
    if (source === "user") asked.user_id = at("user").value;
    else asked.history = readHistory();
    if (examples[source]) asked.request_time = examples[source].request_time;
    const weights = readWeights();
    if (weights) asked.objective_weights = weights;
    const conditions = readConditions();
    const plain = await call("v1/retrieve", asked);
    const answers = [article("Without conditions", plain)];
    if (conditions.length) {
      const without = new Set(plain.content.items.map((item) => item.item_id));
      answers.unshift(article("With conditions", await call("v1/retrieve", { ...asked, conditions }), without));
    }
    at("answers").replaceChildren(...answers);
    at("release").textContent = plain.content.release;
  } catch (error) {
    at("problem").textContent = error.message;
  } finally {
    at("ask").disabled = false;
  }
}

function article(heading, { content, stages, milliseconds }, without) {
  const shown = at("answer").content.cloneNode(true);
  shown.querySelector("h2").textContent = heading;
  const facts = [
    `${milliseconds.toFixed(0)} ms here`,
    stages.replace(/;dur=/g, " ").replace(/, /g, " + ") + (stages && " ms there"),
    `release ${content.release}`,
    `${content.history_events_used} events used`,
    content.unknown_items && `${content.unknown_items} unknown`,
    content.fallback && `fallback: ${content.fallback}`,
  ];
  shown.querySelector(".facts").textContent = facts.filter(Boolean).join(" · ");
  const best = Math.max(...content.items.map((item) => item.score), 0);
  shown.querySelector(".items").replaceChildren(...content.items.map((item) => row(item, best, without)));
  return shown;
}

function row(item, best, without) {
  const line = element("li", item.title || item.item_id);
  if (item.title) line.append(" ", element("span", item.item_id, "id"));
  line.append(" ", element("span", item.score.toFixed(3), "score"));
  if (item.condition) line.append(element("span", item.condition, "why"));
  if (without && !without.has(item.item_id)) {
    line.className = "other";
    line.title = "not in the answer without conditions";
  }
  const bar = element("span", "", "bar");
  bar.style.width = `${best > 0 ? Math.max(0, (100 * item.score) / best) : 0}%`;
  line.append(bar);
  return line;
}

function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function addCondition() {
  const added = at("condition").content.cloneNode(true).firstElementChild;
  added.querySelector(".remove").addEventListener("click", () => {
    added.remove();
    at("add").focus();
  });
  at("conditions").append(added);
  added.querySelector(".name").focus();
}

function begin() {
  start().catch((error) => (at("problem").textContent = error.message));
}

at("token").value = sessionStorage.getItem("token") || "";
at("token").addEventListener("change", () => {
  sessionStorage.setItem("token", at("token").value);
  begin();
});
at("source").addEventListener("change", pick);
at("history").addEventListener("input", () => {
  at("source").value = "typed";
  at("titles").replaceChildren();
});
at("add").addEventListener("click", addCondition);
at("form").addEventListener("submit", ask);
begin();
