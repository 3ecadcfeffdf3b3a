// ONNX Runtime Web as edgekd drives it, the same code in Node.js and in a page.
//
// The host asks the local server for its next task, does it, and posts the answer. Timed calls are made in one task and
// timed here, by performance.now() around session.run(): the way of tensors between the processes is in no figure.
// A message is a little-endian uint32, so many bytes of JSON, and the bytes of its tensors one after the other.

const text = new TextEncoder();

function packed(head, parts = []) {
  const json = text.encode(JSON.stringify(head));
  const size = new Uint8Array(new Uint32Array([json.length]).buffer);
  const whole = new Uint8Array(4 + json.length + parts.reduce((sum, part) => sum + part.byteLength, 0));
  let at = 0;
  for (const part of [size, json, ...parts]) {
    whole.set(new Uint8Array(part.buffer ?? part, part.byteOffset ?? 0, part.byteLength), at);
    at += part.byteLength;
  }
  return whole;
}

function unpacked(buffer) {
  const size = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  return [head, buffer.slice(4 + size)];
}

// Float32 arrays of the tensors in `data`, as ONNX Runtime takes them.
function tensors(ort, described, data) {
  const feeds = {};
  let at = 0;
  for (const { name, dims } of described) {
    const length = dims.reduce((product, size) => product * size, 1);
    feeds[name] = new ort.Tensor("float32", new Float32Array(data, at, length), dims);
    at += 4 * length;
  }
  return feeds;
}

// The smallest step that the clock of this host shows, in microseconds; browsers coarsen it on purpose.
function clockStepUs() {
  let smallest = Infinity;
  for (let round = 0; round < 20; round++) {
    const start = performance.now();
    let now = start;
    while (now === start) now = performance.now();
    smallest = Math.min(smallest, now - start);
  }
  return 1000 * smallest;
}

class Engine {
  constructor(ort, host) {
    this.ort = ort;
    this.host = host;
    this.sessions = new Map(); // by number: {session, feeds}
  }

  // Answered when the program is up and no model is loaded.
  async hello() {
    return [{ clock_step_us: clockStepUs(), ...this.host }];
  }

  async open({ session: number, threads, batch_axes: axes, folds_weights: folds }, model) {
    const { ort } = this;
    ort.env.logLevel = "error";
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.proxy = false;
    const options = { executionProviders: ["wasm"], graphOptimizationLevel: "all", logSeverityLevel: 3 };
    if (Object.keys(axes).length) options.freeDimensionOverrides = axes;
    if (folds) options.extra = { session: { disable_quant_qdq: "1" } };
    const start = performance.now();
    const session = await ort.InferenceSession.create(new Uint8Array(model), options);
    const loadMs = performance.now() - start;
    this.sessions.set(number, { session });
    return [{
      load_ms: loadMs,
      // ONNX Runtime puts 1 here when the host gives it no shared memory.
      threads: ort.env.wasm.numThreads,
      version: ort.env.versions.web ?? ort.env.versions.common,
    }];
  }

  async close({ session: number }) {
    await this.sessions.get(number).session.release();
    this.sessions.delete(number);
    return [{}];
  }

  async infer({ session: number, inputs }, data) {
    const { session } = this.sessions.get(number);
    const found = await session.run(tensors(this.ort, inputs, data));
    const outputs = [], parts = [];
    for (const name of session.outputNames) {
      const { type, dims, data: values } = found[name];
      if (type === "float16") throw new Error(`the output ${name} is float16, which is not read here`);
      outputs.push({ name, dims });
      parts.push(type === "float32" ? values : Float32Array.from(values, Number));
    }
    return [{ outputs }, parts];
  }

  // Inputs that stay here for timed calls.
  async bind({ session: number, inputs }, data) {
    this.sessions.get(number).feeds = tensors(this.ort, inputs, data);
    return [{}];
  }

  async timed({ session, feeds }) {
    const start = performance.now();
    await session.run(feeds);
    return Math.round(1e6 * (performance.now() - start));
  }

  async warm_up({ session: number, seconds }) {
    const bound = this.sessions.get(number);
    const end = performance.now() + 1000 * seconds;
    let calls = 0, fastest = Infinity;
    while (calls < 3 || performance.now() < end) {
      fastest = Math.min(fastest, await this.timed(bound));
      calls++;
    }
    return [{ calls, fastest_ns: fastest }];
  }

  async turn({ session: number, calls }) {
    const bound = this.sessions.get(number);
    await bound.session.run(bound.feeds);
    const ns = [];
    for (let call = 0; call < calls; call++) ns.push(await this.timed(bound));
    return [{ ns }];
  }
}

const TASKS = ["hello", "open", "close", "infer", "bind", "warm_up", "turn"];

// Does tasks until it is told to stop or the server is gone.
export async function serve(ort, link, host) {
  const engine = new Engine(ort, host);
  for (;;) {
    const asked = await fetch(`${link}/next`);
    if (asked.status === 204) continue;
    const [{ do: task, ...request }, data] = unpacked(await asked.arrayBuffer());
    if (task === "stop") return;
    let answer;
    try {
      if (!TASKS.includes(task)) throw new Error(`unknown task ${task}`);
      answer = packed(...(await engine[task](request, data)));
    } catch (error) {
      answer = packed({ error: String(error?.message ?? error) });
    }
    await fetch(`${link}/answer`, { method: "POST", body: answer });
  }
}
