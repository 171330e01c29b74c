// What the explorer shows, to take away: as code that solves it in Python, as a table, as a picture.
const saved = (() => {
  const COLUMNS = 88, MOST_INLINE = 60;
  const number = (x) => (x === Infinity ? "np.inf" : x === -Infinity ? "-np.inf" : String(x));
  const fileName = (problem) => problem.name.replace(/[^\w.+-]+/g, "-") || "explorer";

  // Entries as a list of Python, in lines that fit.
  function list(entries, indent) {
    const lines = [""];
    for (const entry of entries.map((x) => `${x}, `)) {
      const line = lines[lines.length - 1];
      if (line && indent.length + 4 + line.length + entry.length > COLUMNS + 1) lines.push(entry);
      else lines[lines.length - 1] += entry;
    }
    const last = lines.length - 1;
    if (!last && lines[0].length < 64) return `[${lines[0].slice(0, -2)}]`;
    return `[\n${lines.map((x) => `${indent}    ${x.trimEnd()}`).join("\n")}\n${indent}]`;
  }

  function task(problem, reward, logRef) {
    if (problem.source) return [`task = ${problem.source}`];
    if (reward.length > MOST_INLINE) return [
      "# saved by the button CSV", `table = pd.read_csv("${fileName(problem)}.csv", dtype={"outcome": str}, keep_default_na=False)`,
      "task = kt.tasks.as_task(",
      "    (table.reward.to_numpy(), table.log_ref.to_numpy()),",
      "    labels=table.outcome.tolist(),", '    modes=table["mode"],', ")",
    ];
    const arrays = [reward, logRef].map((x) => `        np.array(${list(x.map(number), "        ")}),`);
    return [
      "task = kt.tasks.as_task(", "    (", ...arrays, "    ),",
      `    labels=${list(problem.labels.map((x) => JSON.stringify(x)), "    ")},`,
      `    modes=${list(problem.modes, "    ")},`, ")",
    ];
  }

  // The reference with other odds of the pair, as `withOdds` has it.
  const moved = ([first, second], odds) => [
    "log_ref = np.array(task.log_ref)",
    `odds, pair = ${number(odds)}, [task.modes == ${first}, task.modes == ${second}]`,
    "masses = [np.logaddexp.reduce(log_ref[mode]) for mode in pair]",
    "for mode, mass, other in zip(pair, masses, [1 / odds, odds]):",
    "    log_ref[mode] += np.logaddexp(*masses) - np.log1p(other) - mass",
  ];

  // Code that solves and measures in Python what the sliders say.
  function python(problem, reward, logRef, set) {
    const [, title, , code] = problem.divergences.find(([name]) => name === set.divergence);
    const times = set.reward_scale === 1 ? "" : `${number(set.reward_scale)} * `;
    const method = set.divergence === "reverse-kl" ? "augment" : "substitute";
    const body = [
      ...task(problem, reward, logRef),
      ...(problem.pair && set.odds !== null ? moved(problem.pair, set.odds) : ["log_ref = task.log_ref"]),
      ...(code ? [] : [`divergence = ...  # your own, ${JSON.stringify(title)}`]),
      `objective = kt.Objective(${times}task.reward, log_ref, ${number(set.beta)}, ${code ?? "divergence"})`,
      ...(set.threshold === null ? [] : [`objective = kt.mara(objective, ${times}${number(set.threshold)}, method="${method}")`]),
      "target = kt.solve(objective)",
      'print(f"expected reward {target.expectation(task.reward):.4g}")',
      'print(f"effective modes {kt.effective_modes(target.log_probs, task.modes):.4g}")',
      'print(f"KL(π‖π_ref) {kt.kl(target.log_probs, log_ref):.4g} nats")',
      'print(f"KL(π_ref‖π) {kt.kl(log_ref, target.log_probs):.4g} nats")',
      "kt.plot.target(target, problem=task)",
    ].join("\n");
    const imports = ["np", "pd"].filter((x) => body.includes(`${x}.`)).map((x) => `import ${{ np: "numpy", pd: "pandas" }[x]} as ${x}`);
    return `${[...imports, "import kltarget as kt"].join("\n")}\n\n${body}\n`;
  }

  // A row per outcome: the problem's own numbers, then those that are asked about, then the target.
  function csv(problem, reward, logRef, now) {
    const text = (s) => (/[",\r\n]/.test(s) ? `"${s.replaceAll('"', '""')}"` : s);
    const cell = (x) => (x === -Infinity ? "-inf" : x);
    const rows = problem.labels.map((label, i) => [
      text(label), problem.modes[i], ...[reward, logRef, now.reward, now.asked, now.logs].map((x) => cell(x[i])),
    ]);
    return ["outcome,mode,reward,log_ref,asked_reward,asked_log_ref,log_prob", ...rows, ""].join("\n");
  }

  // Both pictures in one, under what the sliders say and the legend, in the colours of the moment.
  function svg(root, title, says, legend) {
    const pictures = ["#target", "#path"].map((id) => root.querySelector(id)), whole = pictures[0].cloneNode(false);
    const sizes = pictures.map((x) => x.getAttribute("viewBox").split(" ").slice(2).map(Number));
    const margin = 14, width = Math.max(...sizes.map(([w]) => w)) + 2 * margin, entries = [];
    let x = margin, y = 62;
    for (const [name, color, outline, mark] of legend) {
      const wide = 26 + 7 * name.length;
      if (x > margin && x + wide > width - margin) [x, y] = [margin, y + 18];
      entries.push((outline ? `<rect x="${x}" y="${y - 9}" width="10" height="10" fill="none" stroke="${color}" stroke-width="1.5"/>` : `<path transform="translate(${x + 5} ${y - 4})" d="${mark}" fill="${color}"/>`) + `<text x="${x + 16}" y="${y}">${name}</text>`);
      x += wide;
    }
    const copies = pictures.map((picture, k) => {
      const copy = picture.cloneNode(true), [w, h] = sizes[k];
      y += k ? 14 : 10;
      Object.entries({ x: margin, y, width: w, height: h, overflow: "visible" }).forEach(([name, value]) => copy.setAttribute(name, value));
      y += h;
      return copy;
    });
    const rules = style.split("\n").filter((line) => line.startsWith("svg ") && !line.includes("width: 100%"));
    for (const each of [whole, ...copies]) ["id", "style", "role", "aria-label"].forEach((name) => each.removeAttribute(name));
    Object.entries({ viewBox: `0 0 ${width} ${y + margin}`, width, height: y + margin }).forEach(([name, value]) => whole.setAttribute(name, value));
    whole.innerHTML = `<style>svg { font: 12px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; } ${rules.join(" ")}</style>`
      + `<rect width="100%" height="100%" fill="var(--paper)"/><text x="${margin}" y="22" class="strong" font-size="15">${title}</text><text x="${margin}" y="42">${says}</text>${entries.join("")}`;
    whole.append(...copies);
    // Elsewhere the page's own names of colours mean nothing.
    const probe = root.querySelector("main").appendChild(document.createElement("i"));
    const resolved = (name) => { probe.style.color = `var(${name})`; return getComputedStyle(probe).color; };
    const text = new XMLSerializer().serializeToString(whole).replace(/var\((--[\w-]+)\)/g, (_, name) => resolved(name));
    probe.remove();
    return text.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f]/g, "�");
  }

  function download(name, text, type) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  return { python, csv, svg, download, fileName };
})();
