// The targets of max over π of E_π[r] − β·D(π, π_ref): a softmax, a rule or one root.
// Arrays hold one number per outcome, logarithms are natural, −Infinity means impossible.
const kltarget = (() => {
  const sum = (x) => x.reduce((a, b) => a + b, 0);

  function logSumExp(x) {
    const top = x.reduce((a, b) => Math.max(a, b), -Infinity);
    return top === -Infinity ? top : top + Math.log(sum(x.map((v) => Math.exp(v - top))));
  }

  // A divergence as `ratio(t, d)`: the log density ratio u of an outcome whose reward is d·β below
  // that of the top, whose own is t, and its derivative in t. `scale` is the factor c of f = c·f_α,
  // `finite` whether f′(∞) is, so that better outcomes without reference mass can be bought.
  function family(name) {
    const [kind, parameter] = name.split(":");
    const x = Number(parameter);
    const power = {
      "forward-kl": [-1, 1], "chi-squared": [1, 2], "neyman-chi-squared": [-2, 2],
      "squared-hellinger": [-0.5, 0.5], alpha: [x - 1, 1], tsallis: [x - 1, x],
    }[kind];
    if (power) {
      const [gamma, scale] = power;
      const ratio = (t, d) => {
        const own = Math.exp(gamma * t), all = own - gamma * d;
        return all > 0 ? [Math.log(all) / gamma, own / all] : [-Infinity, 0];
      };
      return { ratio, scale, finite: gamma < 0 };
    }
    if (kind === "jensen-shannon") {
      const ratio = (t, d) => {
        const own = Math.exp(-t), all = own - Math.expm1(-d);
        return [-d - Math.log(all), own / all];
      };
      return { ratio, scale: 1, finite: true };
    }
    if (kind === "chi-squared-kl") {
      const ratio = (t, d) => {
        const s = Math.exp(t) + t - d; // u + log u = s, by Newton's method from above
        let y = s > 1 ? Math.log(s) : s;
        for (let k = 0, step = 1; k < 30 && Math.abs(step) > 1e-16 * (1 + Math.abs(y)); k++)
          y -= step = (Math.exp(y) + y - s) / (Math.exp(y) + 1);
        return [y, (1 + Math.exp(t)) / (1 + Math.exp(y))];
      };
      return { ratio, scale: 1, finite: false };
    }
    throw new Error(`unknown divergence ${name}`);
  }

  // A divergence whose generator only Python knows, from a table of `slope` = f′(u) against log u and
  // of `rate` = u f″(u), its derivative there: cubic between the rows, straight beyond them.
  function tabulated({ log_ratio: x, slope: y, rate: m, at_zero, at_infinity }) {
    const last = x.length - 1;
    function row(list, v) {
      let low = 0, high = last;
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        if (list[middle] <= v) low = middle; else high = middle;
      }
      return low;
    }
    function cubic(k, at) {
      const h = x[k + 1] - x[k], s = (at - x[k]) / h, rise = y[k + 1] - y[k];
      const a = h * m[k] - rise, b = rise - h * m[k + 1];
      return [y[k] + s * rise + s * (1 - s) * ((1 - s) * a + s * b), (rise + (1 - 2 * s) * ((1 - s) * a + s * b) + s * (1 - s) * (b - a)) / h];
    }
    function slope(at) {
      if (at === Infinity) return [at_infinity, 0];
      const end = at < x[0] ? 0 : at > x[last] ? last : -1;
      return end < 0 ? cubic(row(x, at), at) : [y[end] + m[end] * (at - x[end]), m[end]];
    }
    function inverse(s) {
      if (at_zero !== null && s <= at_zero) return -Infinity;
      const end = s < y[0] ? 0 : s > y[last] ? last : -1;
      if (end >= 0) return x[end] + (s - y[end]) / m[end];
      const k = row(y, s);
      if (!(y[k + 1] > y[k])) return x[k];
      let low = x[k], high = x[k + 1], at = low + ((s - y[k]) / (y[k + 1] - y[k])) * (high - low);
      for (let n = 0; n < 60 && high - low > 1e-15 * (1 + Math.abs(at)); n++) {
        const [value, rate] = cubic(k, at);
        if (value < s) low = at; else high = at;
        const next = at - (value - s) / rate;
        if (Math.abs(next - at) < 1e-15 * (1 + Math.abs(at))) break;
        at = next > low && next < high ? next : 0.5 * (low + high);
      }
      return at;
    }
    const ratio = (t, d) => {
      if (d === 0) return [t, 1];
      const [own, rate] = slope(t), log = Math.min(inverse(own - d), t);
      return [log, log === -Infinity ? 0 : rate / slope(log)[1]];
    };
    return { ratio, scale: 1, finite: at_infinity !== null };
  }

  function solve(reward, logRef, beta, divergence) {
    reward = Array.from(reward);
    logRef = Array.from(logRef);
    if (divergence === "total-variation") return totalVariation(reward, logRef, beta);
    if (["reverse-kl", "alpha:1", "tsallis:1"].includes(divergence)) {
      const usable = reward.filter((_, i) => logRef[i] > -Infinity);
      const best = usable.reduce((a, b) => Math.max(a, b), -Infinity);
      const score = reward.map((r, i) => logRef[i] > -Infinity ? logRef[i] + (r - best) / beta : -Infinity);
      const total = logSumExp(score);
      return score.map((s) => s - total);
    }
    const { ratio, scale, finite } = typeof divergence === "string" ? family(divergence) : divergence;
    const counts = (r, i) => r > -Infinity && (finite || logRef[i] > -Infinity);
    const top = reward.reduce((a, r, i) => counts(r, i) ? Math.max(a, r) : a, -Infinity);
    // Outcomes of equal reward share one ratio.
    const levels = new Map();
    reward.forEach((r, i) => {
      if (r > -Infinity && logRef[i] > -Infinity) (levels.get(r) ?? levels.set(r, []).get(r)).push(logRef[i]);
    });
    const gap = (r) => (top - r) / (beta * scale);
    const rows = [...levels].map(([r, logs]) => [gap(r), logSumExp(logs)]);
    const mass = (t) => {
      let total = 0, slope = 0;
      for (const [d, log] of rows) {
        const [u, rate] = ratio(t, d), p = Math.exp(log + u);
        total += p;
        if (p > 0) slope += p * rate;
      }
      return [total, slope];
    };
    let t = Infinity;
    const atTop = levels.has(top);
    const missing = atTop ? 0 : 1 - mass(t)[0];
    if (atTop || missing <= 0) {
      let low = -logSumExp(rows.map((row) => row[1]));
      let high = atTop ? -logSumExp(levels.get(top)) : low + 1;
      if (!atTop) while (mass(high)[0] < 1) high += high - low;
      t = 0.5 * (low + high);
      for (let k = 0; k < 200; k++) {
        const [total, slope] = mass(t);
        if (total < 1) low = t; else high = t;
        const step = (-Math.log(total) * total) / slope;
        const inside = t + step > low && t + step < high;
        t = inside ? t + step : 0.5 * (low + high);
        if ((inside && Math.abs(step) < 1e-15 * (1 + Math.abs(t))) || high - low < 4e-16 * (1 + Math.abs(t))) break;
      }
    }
    const bought = missing > 0 ? (r) => r === top : () => false;
    const atoms = reward.filter(bought).length;
    const ratios = new Map([...levels.keys()].map((r) => [r, ratio(t, gap(r))[0]]));
    return reward.map((r, i) => {
      if (logRef[i] === -Infinity) return bought(r) ? Math.log(missing / atoms) : -Infinity;
      return r === -Infinity ? r : Math.min(logRef[i] + ratios.get(r), 0);
    });
  }

  function totalVariation(reward, logRef, beta) {
    const best = reward.reduce((a, b) => Math.max(a, b), -Infinity);
    const logs = new Array(reward.length).fill(-Infinity);
    let left = 1; // what is within β of the best keeps its mass, the best outcomes get the rest
    const byReward = reward.map((_, i) => i).sort((i, j) => reward[j] - reward[i]);
    for (const i of byReward) {
      if (reward[i] === best || !(best - reward[i] < beta) || left <= 0) continue;
      logs[i] = Math.min(logRef[i], Math.log(left));
      left = Math.max(left - Math.exp(logRef[i]), 0);
    }
    const at = byReward.filter((i) => reward[i] === best);
    const held = logSumExp(at.map((i) => logRef[i]));
    for (const i of at) logs[i] = Math.log(left) + (held > -Infinity ? logRef[i] - held : -Math.log(at.length));
    return logs;
  }

  // Mode-anchored augmentation: outcomes from the threshold on become equally probable. Of reverse
  // KL it changes the reward, of the others reward and reference.
  function mara(reward, logRef, beta, divergence, threshold) {
    const good = reward.map((r, i) => r >= threshold && r > -Infinity && logRef[i] > -Infinity);
    let anchor = -1;
    good.forEach((is, i) => {
      if (is && (anchor < 0 || logRef[i] > logRef[anchor]
        || (logRef[i] === logRef[anchor] && reward[i] > reward[anchor]))) anchor = i;
    });
    if (anchor < 0) return [reward, logRef];
    if (divergence === "reverse-kl")
      return [reward.map((r, i) => good[i] ? reward[anchor] + beta * (logRef[anchor] - logRef[i]) : r), logRef];
    return [reward.map((r, i) => good[i] ? reward[anchor] : r), logRef.map((q, i) => good[i] ? logRef[anchor] : q)];
  }

  // The reference with given odds of one set of outcomes against another; their total is kept.
  function withOdds(logRef, first, second, odds) {
    const a = logSumExp(first.map((i) => logRef[i])), b = logSumExp(second.map((i) => logRef[i]));
    const total = logSumExp([a, b]), moved = logRef.slice();
    for (const i of first) moved[i] += total - Math.log1p(1 / odds) - a;
    for (const i of second) moved[i] += total - Math.log1p(odds) - b;
    return moved;
  }

  const kl = (logP, logQ) => Math.max(sum(logP.map((p, i) => p === -Infinity ? 0 : Math.exp(p) * (p - logQ[i]))), 0);

  function effectiveNumber(masses) {
    const total = sum(masses), shares = masses.map((m) => m / total).filter((s) => s > 0);
    return Math.exp(-sum(shares.map((s) => s * Math.log(s))));
  }

  return { solve, tabulated, mara, withOdds, kl, effectiveNumber, logSumExp, sum };
})();
