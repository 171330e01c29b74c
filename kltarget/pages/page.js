// The explorer inside an element of a page or of a notebook. The model, anywidget's or the page's
// own, holds the problem and where the sliders stand.
const MOST_DECADES = 14;
function render({ model, el }) {
  const problem = model.get("problem");
  const root = el.shadowRoot ?? el.attachShadow({ mode: "open" });
  const $ = (id) => root.querySelector(`#${id}`);
  const numbers = (x) => x.map((v) => (v === null ? -Infinity : v));
  const reward = numbers(problem.reward), logRef = numbers(problem.log_ref);
  const { labels, modes, pair, pair_names: names, positions } = problem;
  const members = pair?.map((mode) => modes.flatMap((m, i) => (m === mode ? [i] : [])));
  const group = modes.map((m) => (m < 0 ? 3 : m === pair?.[0] ? 0 : m === pair?.[1] ? 1 : 2));
  const present = [0, 1, 2, 3].filter((g) => group.includes(g));
  const groupNames = [...(names ?? ["", ""]), pair ? "other modes" : "modes", "in no mode"];
  const color = (g) => `var(--${["first", "second", "other", "none"][g]})`;
  // Divergences without a formula here come as tables of f′.
  const divergence = Object.fromEntries(problem.divergences.map(([name, , table]) => [name, table ? kltarget.tabulated(table) : name]));
  const numModes = new Set(modes.filter((m) => m >= 0)).size;
  const byReference = logRef.map((_, i) => i).sort((i, j) => logRef[j] - logRef[i]);
  const logMass = (logs, list) => kltarget.logSumExp(list.map((i) => logs[i]));
  const ownOdds = pair && Math.exp(logMass(logRef, members[0]) - logMass(logRef, members[1]));

  const escape = (s) => String(s).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
  const short = (s, room) => (s.length <= room ? s : s.slice(0, room - 1) + "…");
  function number(x, digits = 3) {
    if (Number.isNaN(x)) return "—";
    if (!Number.isFinite(x)) return x < 0 ? "−∞" : "∞";
    const size = Math.abs(x);
    const text = size !== 0 && (size < 1e-4 || size >= 1e5) ? x.toExponential(1).replace("e+", "e") : String(Number(x.toPrecision(digits)));
    return text.replaceAll("-", "−");
  }
  const odds = (x) => (x >= 1 ? `${number(x)} : 1` : `1 : ${number(1 / x)}`);

  // Sliders move in hundredths of a decade; where they start they are exact, as is what code sets.
  // A hundredth of a decade next to one digit is rounded to it: 0.3, not 0.302.
  function decades(k) {
    const x = 10 ** (k / 100), round = Number(x.toPrecision(1));
    return Math.abs(x / round - 1) < 0.0114 ? round : Number(x.toPrecision(3));
  }
  const nearest = (x) => Math.round(100 * Math.log10(x));
  const ownStep = pair ? nearest(ownOdds) : 0, betaStep = nearest(problem.start.beta), reach = Math.max(300, Math.abs(ownStep) + 50);
  const stops = problem.thresholds;
  // Of each slider the range, the value at a step, the step of a value, and how the value reads.
  // Odds of null are those of the reference, a threshold of null is none.
  const sliders = {
    beta: { low: 100 * problem.beta_decades[0], high: 100 * problem.beta_decades[1], read: (k) => (k === betaStep ? problem.start.beta : decades(k)), step: nearest, say: number },
    reward_scale: { low: -200, high: 200, read: decades, step: nearest, say: (x) => `× ${number(x)}` },
    odds: { low: -reach, high: reach, read: (k) => (k === ownStep ? null : decades(k)), step: (x) => (x === null ? ownStep : nearest(x)), say: (x) => odds(x ?? ownOdds) },
    threshold: { low: 0, high: stops.length, read: (k) => (k ? stops[k - 1] : null), step: (x) => (x === null ? 0 : Math.max(stops.filter((r) => r <= x).length, 1)), say: (x) => (x === null ? "off" : number(x)) },
  };
  const settingNames = ["divergence", ...Object.keys(sliders)];
  // Where the model stands, shown on the controls.
  function settings() {
    const set = Object.fromEntries(settingNames.map((name) => [name, model.get(name)]));
    $("divergence").value = set.divergence;
    for (const [name, slider] of Object.entries(sliders)) {
      const said = slider.say(set[name]);
      $(name).value = slider.step(set[name]);
      $(name).setAttribute("aria-valuetext", said);
      root.querySelector(`output[for=${name}]`).textContent = said;
    }
    return set;
  }

  function problemAt(set, beta) {
    const scaled = reward.map((r) => r * set.reward_scale);
    const ref = pair && set.odds !== null ? kltarget.withOdds(logRef, ...members, set.odds) : logRef;
    const [r, q] = set.threshold === null ? [scaled, ref]
      : kltarget.mara(scaled, ref, beta, divergence[set.divergence], set.threshold * set.reward_scale);
    return { ref, asked: q, reward: r, logs: kltarget.solve(r, q, beta, divergence[set.divergence]) };
  }
  function groupMasses(logs) {
    const mass = [0, 0, 0, 0];
    logs.forEach((p, i) => { mass[group[i]] += Math.exp(p); });
    return mass;
  }
  function measures(logs, ref) {
    const perMode = new Map();
    logs.forEach((p, i) => { if (modes[i] >= 0) perMode.set(modes[i], (perMode.get(modes[i]) ?? 0) + Math.exp(p)); });
    const mean = kltarget.sum(logs.map((p, i) => (p === -Infinity ? 0 : Math.exp(p) * reward[i])));
    return {
      reward: mean, effective: kltarget.effectiveNumber([...perMode.values()]),
      reverse: kltarget.kl(logs, ref), forward: kltarget.kl(ref, logs),
      odds: pair ? Math.exp(logMass(logs, members[0]) - logMass(logs, members[1])) : NaN,
    };
  }

  // The masses over the whole range of β, and where the two modes trade places.
  const cache = { key: "" };
  function path(set) {
    const key = JSON.stringify({ ...set, beta: 0 });
    if (cache.key === key) return cache;
    const [low, high] = problem.beta_decades, count = labels.length > 1000 ? 49 : 81;
    const lead = (logs) => logMass(logs, members[0]) - logMass(logs, members[1]);
    function node(decade) {
      const beta = 10 ** decade, { logs } = problemAt(set, beta);
      return { decade, beta, masses: groupMasses(logs), lead: pair ? lead(logs) : NaN };
    }
    // Where the straight line misses the middle, a corner or a jump is closed in on.
    function between(a, b) {
      const steep = a.masses.some((p, g) => Math.abs(p - b.masses[g]) > 0.01);
      if (!steep || b.decade - a.decade < (high - low) / 4000) return [];
      const middle = node(0.5 * (a.decade + b.decade));
      const off = middle.masses.some((p, g) => Math.abs(p - 0.5 * (a.masses[g] + b.masses[g])) > 0.004);
      return off ? [...between(a, middle), middle, ...between(middle, b)] : [middle];
    }
    const even = Array.from({ length: count }, (_, k) => node(low + ((high - low) * k) / (count - 1)));
    const nodes = even.flatMap((b, k) => (k ? [...between(even[k - 1], b), b] : [b]));
    const betas = nodes.map((x) => x.beta), leads = pair ? nodes.map((x) => x.lead) : [], flips = [];
    const clear = leads.map((x, k) => [x, k]).filter(([x]) => Math.abs(x) > 1e-9);
    for (let c = 1; c < clear.length; c++) {
      const [[before, i], [after, j]] = [clear[c - 1], clear[c]];
      if (before * after > 0) continue;
      let [a, b] = [Math.log(betas[i]), Math.log(betas[j])];
      for (let k = 0; k < 40; k++) {
        const middle = 0.5 * (a + b);
        if (lead(problemAt(set, Math.exp(middle)).logs) * before > 0) a = middle; else b = middle;
      }
      flips.push(Math.exp(0.5 * (a + b)));
    }
    return Object.assign(cache, { key, betas, masses: nodes.map((x) => x.masses), leads, flips });
  }

  // What the target is where the slider of β stands, and what becomes of the two modes elsewhere.
  function verdict(set, found, logs) {
    const percent = (p) => `<b>${number(100 * p)} %</b>`, at = `At β = <b>${number(set.beta)}</b>`;
    if (!pair) {
      const best = logs.reduce((top, p, i) => (p > logs[top] ? i : top), 0);
      return `${at} the most probable outcome is <b>“${escape(short(labels[best], 40))}”</b> with ${percent(Math.exp(logs[best]))}.`;
    }
    const [p, q] = groupMasses(logs), [a, b] = names.map((n) => `<b>“${escape(n)}”</b>`);
    return `${at}: ${a} ${percent(p)}, ${b} ${percent(q)}. ${elsewhere(found, a, b)}`;
  }
  function elsewhere({ leads, flips }, a, b) {
    const first = leads[0], last = leads[leads.length - 1];
    if (flips.length === 1) {
      const [below, above] = first > 0 ? [a, b] : [b, a];
      return `Below β = <b>${number(flips[0])}</b> the target prefers ${below}, above it ${above}.`;
    }
    if (flips.length) return `${a} and ${b} trade places at β = ${flips.map((x) => number(x)).join(" and ")}.`;
    if (leads.every((x) => Math.abs(x) < 1e-6)) return `${a} and ${b} are equally probable at every β.`;
    if (leads.every((x) => Math.abs(x - first) < 1e-6 * (1 + Math.abs(first))))
      return `Their rewards are equal, so the target keeps the odds ${a} : ${b} = <b>${odds(Math.exp(first))}</b> of the reference at every β.`;
    if (Number.isNaN(first) || Number.isNaN(last)) return "";
    return `${first > 0 ? a : b} is ahead of ${first > 0 ? b : a} at every β shown.`;
  }

  const line = (x1, y1, x2, y2, kind = "axis") => `<line class="${kind}" x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}"/>`;
  const text = (x, y, s, more = "") => `<text x="${x}" y="${y}" ${more}>${escape(s)}</text>`;
  const power = (k) => (k === 0 ? "1" : k === 1 ? "10" : `10${[...String(k)].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("")}`);
  function frame(svg, height) {
    const width = Math.max(svg.clientWidth, 260);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.style.height = `${height}px`;
    return width;
  }
  function probabilityAxis(left, right, y, top) {
    const steps = [0, 0.25, 0.5, 0.75, 1].map((k) => k * top);
    return steps.map((v) => line(left, y(v), right, y(v)) + text(left - 7, y(v) + 4, number(v), 'text-anchor="end"')).join("");
  }
  function roundUp(x) {
    const unit = 10 ** Math.floor(Math.log10(x));
    return Math.min(unit * [1, 2, 4, 10].find((k) => k * unit >= x * 0.999), 1);
  }
  // One path per colour; dots that would cover one another to the pixel are drawn once.
  function dots(points, radius) {
    const paths = ["", "", "", ""], seen = new Set();
    for (const [x, y, g] of points) {
      const key = `${Math.round(x)},${Math.round(y)},${g}`;
      if (!seen.has(key)) paths[g] += `M${x.toFixed(1)} ${y.toFixed(1)}h0`;
      seen.add(key);
    }
    return [3, 2, 1, 0].map((g) => paths[g] && `<path d="${paths[g]}" fill="none" stroke="${color(g)}" stroke-linecap="round" stroke-width="${2 * radius(g)}"/>`).join("");
  }

  let point = null; // the outcome at a horizontal place
  function drawBars(svg, at) {
    const slots = labels.length, flat = (svg.clientWidth - 60) / slots;
    const tilted = labels.some((s) => Math.min(s.length, 18) * 7 > flat - 6);
    const height = 330, left = 44, top = 10, bottom = height - (tilted ? 104 : 44), width = frame(svg, height);
    const slot = (width - left - 4) / slots, bar = Math.min(slot * 0.36, 64), y = (p) => bottom - p * (bottom - top);
    let out = probabilityAxis(left, width, y, 1);
    labels.forEach((label, i) => {
      const x = left + slot * (i + 0.5), [q, p] = [Math.exp(at.ref[i]), Math.exp(at.logs[i])];
      const lifted = at.shown[i] !== reward[i] && set.threshold !== null ? ` → ${number(at.shown[i])}` : "";
      out += `<rect class="reference" x="${x - bar - 1}" y="${y(q)}" width="${bar - 2}" height="${bottom - y(q)}"/>`;
      out += `<rect fill="${color(group[i])}" x="${x + 1}" y="${y(p)}" width="${bar}" height="${bottom - y(p)}"/>`;
      if (slot > 140) out += text(x + 1 + bar / 2, y(p) - 5, number(p), 'class="strong" text-anchor="middle"') + text(x - bar / 2, y(q) - 5, number(q), 'text-anchor="middle"');
      const turn = tilted ? `text-anchor="end" transform="rotate(-38 ${x} ${bottom + 16})"` : 'text-anchor="middle"';
      out += text(x, bottom + 17, short(label, 18) + (tilted ? ` (${number(reward[i])})` : ""), `class="strong" ${turn}`);
      if (!tilted) out += text(x, bottom + 34, (slot > 110 ? "reward " : "r = ") + number(reward[i]) + lifted, 'text-anchor="middle"');
    });
    svg.innerHTML = out + line(left, bottom, width, bottom);
    point = (px) => Math.floor((px - left) / slot);
  }

  function drawMany(svg, at) {
    const height = 400, left = 52, top = positions ? 10 : 80, bottom = 288, width = frame(svg, height), right = width - 6;
    const order = positions ? labels.map((_, i) => i) : byReference, count = order.length;
    const value = order.map((_, k) => (positions ? positions[k] : Math.log10(k + 1)));
    const [from, to] = [value[0] - (positions ? 0.5 : 0.05), value[count - 1] + (positions ? 0.5 : 0.05)];
    const x = (v) => left + ((v - from) / (to - from)) * (right - left);
    let out = "", y;
    if (positions) {
      const most = Math.exp(Math.max(...at.logs, ...at.ref)), high = roundUp(most);
      y = (log) => bottom - (Math.exp(log) / high) * (bottom - top);
      out += probabilityAxis(left, right, (p) => y(Math.log(p)), high);
      const bar = Math.max(((right - left) / count) * 0.78, 1), paths = ["", "", "", ""];
      order.forEach((i, k) => { paths[group[i]] += `M${x(value[k]).toFixed(1)} ${bottom}V${y(at.logs[i]).toFixed(1)}`; });
      out += paths.map((d, g) => d && `<path d="${d}" stroke="${color(g)}" stroke-width="${bar}" fill="none"/>`).join("");
      const steps = order.map((i, k) => `${k ? "L" : "M"}${x(value[k] - 0.5).toFixed(1)} ${y(at.ref[i]).toFixed(1)}H${x(value[k] + 0.5).toFixed(1)}`);
      out += `<path class="reference" d="${steps.join("")}"/>`;
    } else {
      // A few outcomes that are all but impossible do not press the others together.
      const lowest = Math.max(Math.floor(Math.min(...logRef.filter(Number.isFinite)) / Math.LN10) - 2, -MOST_DECADES);
      y = (log) => top + (log / Math.LN10 / lowest) * (bottom - top);
      const every = Math.ceil(-lowest / 6);
      for (let k = 0; k >= lowest; k -= every) out += line(left, y(k * Math.LN10), right, y(k * Math.LN10)) + text(left - 7, y(k * Math.LN10) + 4, power(k), 'text-anchor="end"');
      const inside = order.map((i, k) => [i, k]).filter(([i]) => at.logs[i] > lowest * Math.LN10);
      const line_ = order.filter((i) => at.ref[i] > -Infinity).map((i, k) => `${k ? "L" : "M"}${x(value[k]).toFixed(1)} ${y(Math.max(at.ref[i], lowest * Math.LN10)).toFixed(1)}`);
      const many = count > 400;
      out += dots(inside.map(([i, k]) => [x(value[k]), y(at.logs[i]), group[i]]), (g) => (g === 3 && many ? 1.3 : g < 2 ? 4.5 : 3));
      out += `<path class="reference" d="${line_.join("")}"/>`;
      out += names_(at, order, value, x, y, left, right, top);
      const below = count - inside.length;
      if (below) out += text(right, bottom - 6, `${below.toLocaleString("en")} below the axis`, 'text-anchor="end"');
    }
    out += line(left, bottom, right, bottom) + xTicks(value, x, bottom, right);
    svg.innerHTML = out + rewardPanel(at, order, value, x, left, right);
    point = (px) => {
      const v = from + ((px - left) / (right - left)) * (to - from);
      let k = positions ? value.findIndex((u) => u >= v - 0.5) : Math.round(10 ** v) - 1;
      k = Math.min(Math.max(k, 0), count - 1);
      return order[k];
    };
  }
  function xTicks(value, x, bottom, right) {
    let out = "";
    if (positions) {
      const span = value[value.length - 1] - value[0], unit = 10 ** Math.floor(Math.log10(span / 3));
      const step = unit * (span / unit > 12 ? 5 : span / unit > 6 ? 2 : 1);
      for (let v = Math.ceil(value[0] / step) * step; v <= value[value.length - 1]; v += step) out += text(x(v), bottom + 16, number(v, 6), 'text-anchor="middle"');
      return out + text(right, bottom + 30, "outcome", 'text-anchor="end"');
    }
    for (let k = 0; k <= value[value.length - 1]; k++) out += text(x(k), bottom + 16, (10 ** k).toLocaleString("en"), 'text-anchor="middle"');
    return out + text(right, bottom + 30, "rank under the reference", 'text-anchor="end"');
  }
  // The most probable outcomes of the target, on a rail above so that names cannot overlap.
  function names_(at, order, value, x, y, left, right, top) {
    const room = Math.max(2, Math.min(12, Math.floor((right - left - 40) / 46)));
    const tied = (i) => Math.round(1e6 * Math.max(at.logs[i], -1e6));
    const chosen = order.map((i, k) => [i, k]).sort(([i, k], [j, m]) => tied(j) - tied(i) || k - m).slice(0, room).sort(([, a], [, b]) => a - b);
    const wanted = chosen.map(([, k]) => x(value[k]));
    const gap = 26;
    for (let n = 1; n < wanted.length; n++) wanted[n] = Math.max(wanted[n], wanted[n - 1] + gap);
    wanted[wanted.length - 1] = Math.min(wanted[wanted.length - 1], right - 40);
    for (let n = wanted.length - 2; n >= 0; n--) wanted[n] = Math.min(wanted[n], wanted[n + 1] - gap);
    return chosen.map(([i, k], n) => `<path class="rail" d="M${wanted[n]} ${top - 10}L${x(value[k])} ${y(at.logs[i])}"/>`
      + text(wanted[n], top - 13, short(labels[i], 12), `class="strong" transform="rotate(-42 ${wanted[n]} ${top - 13})"`)).join("");
  }
  function rewardPanel(at, order, value, x, left, right) {
    const top = 334, bottom = 388, shown = at.shown, finite = [...reward, ...shown].filter(Number.isFinite);
    const [low, high] = [finite.reduce((a, b) => Math.min(a, b)), finite.reduce((a, b) => Math.max(a, b))];
    const y = (r) => bottom - ((Math.max(r, low) - low) / (high - low || 1)) * (bottom - top);
    let out = text(left, top - 9, set.threshold === null ? "reward" : "reward after MARA");
    for (const r of high > low ? [low, high] : [low]) out += line(left, y(r), right, y(r)) + text(left - 7, y(r) + 4, number(r), 'text-anchor="end"');
    if (!positions) return out + dots(order.map((i, k) => [x(value[k]), y(shown[i]), group[i]]), (g) => (g < 2 ? 3.5 : g === 2 ? 2 : 1.2));
    const steps = (r) => order.map((i, k) => `${k ? "L" : "M"}${x(value[k] - 0.5).toFixed(1)} ${y(r[i]).toFixed(1)}H${x(value[k] + 0.5).toFixed(1)}`).join("");
    return out + `<path class="reference" d="${steps(shown)}"/>`;
  }

  // Square, triangle, diamond, bar: of the two modes, the others, and what is in none.
  const marks = ["M-4.5-4.5h9v9h-9z", "M0-6l6 10h-12z", "M0-6.5l5 6.5l-5 6.5l-5-6.5z", "M-5-1.5h10v3h-10z"];

  function drawPath(svg, set, found) {
    const height = 230, left = 44, top = 20, bottom = height - 36, width = frame(svg, height), right = width - 10;
    const [low, high] = problem.beta_decades, x = (beta) => left + ((Math.log10(beta) - low) / (high - low)) * (right - left);
    const y = (p) => bottom - p * (bottom - top);
    let out = probabilityAxis(left, right, y, 1);
    const each = Math.ceil((34 * (high - low)) / (right - left));
    for (let k = low; k <= high; k += each) out += text(x(10 ** k), bottom + 17, power(k), 'text-anchor="middle"');
    out += text(right, bottom + 32, "β", 'class="strong" text-anchor="end"');
    out += line(x(set.beta), top - 4, x(set.beta), bottom, "now") + text(x(set.beta), top - 8, `β = ${number(set.beta)}`, `class="strong" text-anchor="${x(set.beta) > right - 40 ? "end" : x(set.beta) < left + 40 ? "start" : "middle"}"`);
    for (const g of present.slice().reverse()) {
      const d = found.betas.map((beta, k) => `${k ? "L" : "M"}${x(beta).toFixed(1)} ${y(found.masses[k][g]).toFixed(1)}`).join("");
      // Where the two modes coincide, dashes let the one behind be seen.
      const dashes = g === 0 && found.leads.every((v) => Math.abs(v) < 1e-6) ? 'stroke-dasharray="9 9"' : "";
      out += `<path d="${d}" fill="none" stroke="${color(g)}" stroke-width="2.4" stroke-linejoin="round" ${dashes}/>`;
      // Without colours lines are told apart by their marks, which lie apart where lines coincide.
      const gap = found.betas.length / 6;
      for (let k = Math.round(gap * (0.2 + g / 4)); k < found.betas.length; k += Math.round(gap)) out += `<path transform="translate(${x(found.betas[k]).toFixed(1)} ${y(found.masses[k][g]).toFixed(1)})" d="${marks[g]}" fill="${color(g)}"/>`;
    }
    found.flips.forEach((flip, k) => {
      // Of several flips the labels lie on alternate sides.
      const right_of = found.flips.length > 1 ? k % 2 === 1 : x(flip) < right - 110;
      const mass = groupMasses(problemAt(set, flip).logs), here = 0.5 * (mass[0] + mass[1]);
      out += `<circle cx="${x(flip)}" cy="${y(here)}" r="5" fill="var(--paper)" stroke="var(--ink)" stroke-width="1.6"/>` + text(x(flip) + (right_of ? 11 : -11), y(here) + 4, `flip at ${number(flip, 4)}`, `class="strong halo" text-anchor="${right_of ? "start" : "end"}"`);
    });
    svg.innerHTML = out;
  }

  // The colours of what lies around, which in a notebook are not always those of the system.
  function colorScheme() {
    let node = el;
    while (node && !getComputedStyle(node).backgroundColor.startsWith("rgb(")) node = node.parentElement ?? node.getRootNode().host;
    const [r, g, b] = node ? getComputedStyle(node).backgroundColor.match(/[\d.]+/g) : [255, 255, 255];
    return 0.3 * r + 0.6 * g + 0.1 * b < 128 ? "dark" : "light";
  }

  let set, now, pointed = null; // where the pointer is over the picture
  function sayPointed() {
    const i = pointed === null ? -1 : point(pointed);
    $("pointed").textContent = labels[i] === undefined ? "\u00a0"
      : `“${labels[i]}”: reward ${number(reward[i])}, reference ${number(Math.exp(now.ref[i]))}, target ${number(Math.exp(now.logs[i]))}`;
  }
  function draw() {
    root.querySelector("main").style.colorScheme = colorScheme();
    set = settings();
    now = problemAt(set, set.beta);
    now.shown = now.reward.map((r) => r / set.reward_scale);
    const found = path(set), [here, there] = [measures(now.logs, now.ref), measures(now.ref, now.ref)];
    (labels.length <= problem.most_bars ? drawBars : drawMany)($("target"), now);
    drawPath($("path"), set, found);
    sayPointed();
    $("verdict").innerHTML = verdict(set, found, now.logs);
    if (!$("code").hidden) $("code").textContent = saved.python(problem, reward, logRef, set);
    const rows = [["expected reward", there.reward, here.reward], [`effective modes, of ${numModes}`, there.effective, here.effective],
      ["KL(π‖π<sub>ref</sub>), nats", 0, here.reverse], ["KL(π<sub>ref</sub>‖π), nats", 0, here.forward]].map(([name, a, b]) => [name, number(a, 4), number(b, 4)]);
    if (pair) rows.push([names.some((n) => n.length > 9) ? "odds of the two" : `odds ${names.map(escape).join(" : ")}`, odds(there.odds), odds(here.odds)],
      ["flip at β", "", found.flips.map((b) => number(b, 4)).join(", ") || "none"]);
    $("numbers").innerHTML = rows.map(([name, a, b]) => `<tr><th scope="row">${name}</th><td>${a}</td><td>${b}</td></tr>`).join("");
    const biggest = now.logs.reduce((best, p, i) => (p > now.logs[best] ? i : best), 0);
    $("target").setAttribute("aria-label", `Target at β = ${number(set.beta)}: most probable is ${labels[biggest]} with ${number(Math.exp(now.logs[biggest]))}`);
  }
  let waiting = 0;
  const later = () => { waiting ||= requestAnimationFrame(() => { waiting = 0; draw(); }); };

  root.innerHTML = `<style>${style}</style><main>
<header><h1>${escape(problem.name)}</h1><p class="description">${escape(problem.description)}</p>
<p>What post-training aims at: the policy π that maximises
<span class="formula">E<sub>π</sub>[<i>r</i>] − <i>β</i>·D(π, π<sub>ref</sub>)</span>, exactly.</p></header>
<p id="verdict" aria-live="polite"></p>
<div class="grid">
<section aria-labelledby="target-heading"><h2 id="target-heading">The target</h2><p class="legend" id="legend"></p>
<svg id="target" role="img" aria-label="Target and reference"></svg><p class="under" id="pointed"></p></section>
<form id="controls" aria-label="Settings">
<label for="divergence">Regulariser D</label><select id="divergence"></select>
<label for="beta">Coefficient β <output for="beta"></output></label><input id="beta" type="range">
<label for="reward_scale">Reward scale <output for="reward_scale"></output></label><input id="reward_scale" type="range">
<div id="with-odds"><label for="odds"><span>Reference <b id="odds-name"></b></span> <output for="odds"></output></label><input id="odds" type="range"></div>
<label for="threshold"><span>MARA: equalise from reward</span> <output for="threshold"></output></label><input id="threshold" type="range">
<p class="buttons"><button type="reset">Reset</button><button type="button" id="copy" aria-live="polite">Copy as Python</button>
<button type="button" id="save-svg">SVG</button><button type="button" id="save-csv">CSV</button></p></form>
<section aria-labelledby="path-heading"><h2 id="path-heading">Probability of the modes against β</h2>
<svg id="path" role="img" aria-label="Probability of the modes against β"></svg></section>
<section aria-labelledby="numbers-heading"><h2 id="numbers-heading">In numbers</h2>
<table><thead><tr><th></th><th scope="col">reference</th><th scope="col">target</th></tr></thead><tbody id="numbers"></tbody></table></section>
</div><pre id="code" tabindex="0" aria-label="The same in Python" hidden></pre></main>`;
  for (const [name, { low, high }] of Object.entries(sliders)) Object.assign($(name), { min: low, max: high, step: 1 });
  $("divergence").innerHTML = problem.divergences.map(([value, title]) => `<option value="${escape(value)}">${escape(title)}</option>`).join("");
  $("with-odds").hidden = !pair;
  if (pair) $("odds-name").textContent = names.map((n) => short(n, 10)).join(" : ");
  const legend = [["reference", "var(--reference)", true], ...present.map((g) => [escape(short(groupNames[g], 28)), color(g), false, marks[g]])];
  $("legend").innerHTML = legend.map(([name, ink, outline, mark]) => `<span>${outline ? `<i style="border:1.5px solid ${ink}"></i>` : `<svg viewBox="-7 -7 14 14" aria-hidden="true"><path d="${mark}" fill="${ink}"/></svg>`}${name}</span>`).join("");
  function move(values) {
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
    later();
  }
  $("controls").addEventListener("input", ({ target: { id, value } }) => move({ [id]: id in sliders ? sliders[id].read(Number(value)) : value }));
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("controls").addEventListener("reset", (event) => { event.preventDefault(); move(problem.start); });
  // Where nothing may be copied the code is there to be selected.
  $("copy").addEventListener("click", async () => {
    $("code").hidden = false;
    draw();
    const copied = await navigator.clipboard?.writeText($("code").textContent).then(() => true, () => false);
    $("copy").textContent = copied ? "Copied" : "Copy it below";
    setTimeout(() => { $("copy").textContent = "Copy as Python"; }, 2000);
  });
  $("save-svg").addEventListener("click", () => {
    const title = problem.divergences.find(([name]) => name === set.divergence)[1];
    const says = [title, ...Object.entries(sliders).map(([name, { say }]) => [name, say(set[name])])
      .filter(([name]) => name === "beta" || set[name] !== problem.start[name])
      .map(([name, said]) => `${{ beta: "β =", reward_scale: "rewards", odds: "odds", threshold: "MARA from" }[name]} ${said}`)];
    saved.download(`${saved.fileName(problem)}.svg`, saved.svg(root, escape(problem.name), escape(says.join(" · ")), legend), "image/svg+xml");
  });
  $("save-csv").addEventListener("click", () => saved.download(`${saved.fileName(problem)}.csv`, saved.csv(problem, reward, logRef, now), "text/csv"));
  $("target").addEventListener("pointermove", (event) => {
    pointed = event.clientX - $("target").getBoundingClientRect().left;
    sayPointed();
  });
  $("target").addEventListener("pointerleave", ({ pointerType }) => {
    if (pointerType === "touch") return; // a finger has to leave to read
    pointed = null;
    sayPointed();
  });
  const resized = new ResizeObserver(later), colors = matchMedia("(prefers-color-scheme: dark)");
  const listen = (on) => settingNames.forEach((name) => model[on](`change:${name}`, later));
  resized.observe($("target"));
  colors.addEventListener("change", later);
  listen("on");
  draw();
  return () => {
    resized.disconnect();
    colors.removeEventListener("change", later);
    listen("off");
  };
}
