// Readings of each stage, computed from two consecutive states of the chain. Numbers only, no elements.

/** Stages in order, each with the nodes that serve it. */
export class Readings {
  #before = new Map();
  #kept = new Map();

  /** @returns Places of the chain, in order: {name, layers, nodes}. */
  read(state) {
    const nodes = new Map(state.nodes.map((node) => [node.at, node]));
    const places = new Map();
    const areSeveral = state.stages.some((stage) => stage.chain > 0);
    for (const stage of state.stages) {
      const id = `${stage.chain}:${stage.stages.join()}`;
      const name = areSeveral ? `Chain ${stage.chain}, ${nameOf(stage.stages).toLowerCase()}` : nameOf(stage.stages);
      if (!places.has(id)) places.set(id, { id, chain: stage.chain, name, layers: stage.layers, next: stage.next, nodes: [] });
      places.get(id).nodes.push(this.#node(stage, nodes.get(stage.at)));
    }
    const found = [...places.values()];
    for (const place of found) {
      const alive = place.nodes.filter((node) => node.health === "ready");
      place.health = alive.length ? "ready" : place.nodes.some((node) => node.health === "quiet") ? "quiet" : "lost";
      const timed = place.nodes.map((node) => node.stepMs).filter(Number.isFinite);
      place.stepMs = timed.length ? Math.max(...timed) : null;
      place.isBusy = place.nodes.some((node) => node.isBusy);
      const sent = place.nodes.map((node) => node.sentBytes).filter(Number.isFinite);
      place.sentBytes = sent.length ? Math.max(...sent) : null;
      place.roundTripMs = place.nodes.map((node) => node.roundTripMs).find(Number.isFinite) ?? null;
    }
    return found;
  }

  #node(stage, node) {
    const load = node?.load ?? {};
    const budget = (load.weight_bytes ?? 0) + (load.kv_budget_bytes ?? 0);
    const found = {
      at: stage.at,
      machine: stage.machine,
      health: !node ? "quiet" : node.alive ? "ready" : "lost",
      error: node?.error ?? null,
      about: about(node),
      weightBytes: load.weight_bytes ?? stage.weight_bytes,
      cacheBytes: load.kv_reserved_bytes ?? 0,
      budgetBytes: budget || null,
      sessions: node?.sessions ?? load.sessions ?? 0,
      roundTripMs: stage.round_trip_s === undefined ? null : stage.round_trip_s * 1000,
      ...this.#rates(stage.at, node, load),
    };
    return found;
  }

  /** Means of the decode steps since the previous state; without new steps, the last means. */
  #rates(at, node, load) {
    if (!node?.alive) return { stepMs: null, sentBytes: this.#kept.get(at)?.sentBytes ?? null, isBusy: false };
    const before = this.#before.get(at);
    this.#before.set(at, { boot: node.boot_id, load });
    const isSame = before && before.boot === node.boot_id;
    const since = (name) => (load[name] ?? 0) - (isSame ? (before.load[name] ?? 0) : 0);
    const steps = since("decode_steps");
    const isNew = isSame && steps > 0;
    if (steps > 0) {
      const sent = since("decode_sent_bytes");
      this.#kept.set(at, { stepMs: (since("decode_compute_s") * 1000) / steps, sentBytes: sent > 0 ? sent / since("decode_ids") : null });
    }
    return { stepMs: null, sentBytes: null, ...this.#kept.get(at), isBusy: isNew };
  }
}

export const nameOf = (stages) => (stages.length === 1 ? `Stage ${stages[0]}` : `Stages ${stages[0]} to ${stages.at(-1)}`);

function about(node) {
  if (!node) return "";
  if (!node.host) return node.alive && !node.error ? "In the gateway's own process" : "";
  const { cpu, chip, backend, memory_bytes: memory } = node.host;
  const size = memory ? `${Math.round(Number(memory) / 2 ** 30)} GB` : "";
  return [cpu || chip, backend === "metal" ? "Metal" : (backend ?? "").toUpperCase(), size].filter(Boolean).join(", ");
}
