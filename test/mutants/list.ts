/**
 * The repository with one defect each. The first list is for the suite: `fails` is what it finds, no more and no less.
 * The second one is for what only a unit test can show: one of `tests`, whose title matches `pattern`, fails.
 */

export interface Change {
  /** What the defect does, as a statement. */
  readonly name: string;
  readonly file: 'background.ts' | 'deps.ts' | 'server.ts' | 'fixtures/conformance/reference.ts';
  /** Occurs once in `file`, and is replaced by `to`. */
  readonly from: string;
  readonly to: string;
}
export interface Mutant extends Change {
  /** The ids of the cases that fail. */
  readonly fails: readonly string[];
}
export interface UnitMutant extends Change {
  readonly tests: string;
  /** For `--test-name-pattern`. */
  readonly pattern: string;
}

const ids = (list: string): string[] => list.trim().split(/\s+/);

const HANDLE = 'scope.answer(scope.route = find(scope, tree))';
/** {@link HANDLE}, with what `change` does to its value or its tasks. */
const handled = (change: string): string => `(async () => {
        const value = await ${HANDLE};
        ${change}
        return value;
      })()`;
const RUN = 'tasks.start(then);';
const WAIT_FOR_TASKS = 'await new Promise<void>((resolve) => runTasks(scope, res, resolve));';
const CALL = 'task.scope.runInAsyncScope(task.fn, undefined, ...task.args)';
const WAIT = 'if (isThenable(result)) await task.scope.runInAsyncScope(Promise.resolve, Promise, result);';
const FAIL = 'await task.scope.runInAsyncScope(this.#fail, this, task, error);';
const BODY = 'const body = plan.stream';
const START = 'task.scope.runInAsyncScope(() => channels.start.publish(this.#info(task)));';
const END = 'task.scope.runInAsyncScope(() => channels.end.publish(this.#info(task)));';
const ERROR = 'channels.error.publish({ ...info, error });';
const DROPPED = 'for (const info of dropped) channels.dropped.publish({ ...info, reason });';
const EACH = 'while (this.#started < this.#tasks.length) {';

export const mutants: readonly Mutant[] = [
  // 1: the response first
  {
    name: 'eager: a task starts when it is added',
    file: 'background.ts',
    from: 'if (!this.#closed) return void this.#tasks.push(task);',
    to: `if (!this.#closed) {
      const before = Promise.resolve(Reflect.get(this, 'before'));
      Reflect.set(this, 'before', before.then(() => fn(...args)).catch((error: unknown) => report(fn.name, error)));
      return;
    }`,
    fails: ids(`
      1.1.1 1.1.2 1.2.1 1.3.2 1.4.2 2.1.2 2.2.2 2.5.1 2.5.2 3.2.3 3.3.2 3.4.2 4.3.1 4.3.2 4.3.3 4.3.4 7.1.1 7.1.2
      7.1.3 7.1.4 10.3.1 10.3.2`),
  },
  {
    name: 'the tasks of a dependency start when it has returned',
    file: 'deps.ts',
    from: 'return Promise.resolve(result.next()).then(({ value, done }) => {',
    to: `return Promise.resolve(result.next()).then(({ value, done }) => {
        if (this.tasks.unfinished.length > 0) void this.tasks.run();`,
    fails: ['1.1.2', '10.3.1'],
  },
  {
    name: 'awaits: the tasks run before the response',
    file: 'fixtures/conformance/reference.ts',
    from: BODY,
    to: `if (plan.handler[0]?.id !== 'fence') await tasks.run();\n    ${BODY}`,
    fails: ids(`
      1.1.1 1.1.2 1.2.1 1.3.1 1.3.2 1.3.3 1.3.4 1.3.5 1.4.1 1.4.2 2.1.1 2.1.2 2.1.3 2.2.1 2.2.2 2.3.1 2.3.2 2.4.1
      2.4.2 2.5.1 2.5.2 2.6.1 3.2.1 3.2.2 3.2.3 3.3.1 3.3.2 3.4.1 3.4.2 4.1.1 4.1.2 4.1.3 4.1.4 4.1.5 4.1.6 4.2.1
      4.4.3 4.4.4 4.4.5 4.5.1 4.7.1 5.1.1 5.1.2 5.2.1 5.3.1 5.4.1 7.1.1 7.1.2 7.1.3 7.1.4 7.2.1 7.3.1 7.3.2 7.4.1
      7.4.2 7.5.1 10.1.1 10.1.2 10.1.3 10.2.1 10.3.1 10.3.2`),
  },
  {
    name: 'leaks the error: a 201, or a stream, waits for the tasks, and is 500 if one of them fails',
    file: 'fixtures/conformance/reference.ts',
    from: BODY,
    to: `if (plan.status === 201 || plan.stream) {
      const { subscribe } = await import('node:diagnostics_channel');
      const failures: unknown[] = [];
      subscribe('background-tasks:error', (told) => failures.push(Reflect.get(told as object, 'error')));
      await tasks.run();
      if (failures.length > 0) throw failures[0];
    }
    ${BODY}`,
    fails: ids(`
      1.2.1 1.3.3 3.1.1 3.1.2 3.1.3 3.1.4 4.1.1 4.4.3 4.5.1 4.7.1`),
  },
  {
    name: 'a response of 1 MiB waits for the tasks',
    file: 'fixtures/conformance/reference.ts',
    from: BODY,
    to: `if (plan.size >= 2 ** 20) await tasks.run();\n    ${BODY}`,
    fails: ['1.3.4'],
  },
  {
    name: 'the tasks of a streamed response start with its first byte (starlette #3458)',
    file: 'fixtures/conformance/reference.ts',
    from: BODY,
    to: `if (plan.stream) setImmediate(() => tasks.run());\n    ${BODY}`,
    fails: ['1.2.1'],
  },
  {
    name: 'the last byte of a streamed response waits for the tasks',
    file: 'fixtures/conformance/reference.ts',
    from: 'ReadableStream.from(pieces(plan))',
    to: 'ReadableStream.from((async function* () { yield* pieces(plan); await tasks.run(); })())',
    fails: ['1.2.1', '1.3.3'],
  },
  {
    name: 'the end of file waits for the tasks',
    file: 'server.ts',
    from: 'scope.place = scopes.push(scope) - 1;',
    to: `scope.place = scopes.push(scope) - 1;
    const { tasks, request: { socket } } = scope;
    const destroySoon = socket.destroySoon;
    socket.destroySoon = () => whenDone(res, () => void tasks.run().then(() => destroySoon.call(socket)));`,
    fails: ['1.4.1', '1.4.2', '5.4.1'],
  },

  // 2: in order, one at a time, once
  {
    name: 'parallel: all tasks start at once, the last one first',
    file: 'background.ts',
    from: 'this.#end = this.#runInOrder(then)',
    to: `this.#end = (async () => {
    const started = new Set<Task>();
    for (;;) {
      const more = this.#tasks.filter((task) => !started.has(task)).reverse();
      if (more.length === 0) break;
      await Promise.all(more.map(async (task) => {
        started.add(task);
        await (async () => task.fn(...task.args))().catch((error: unknown) => this.#fail(task, error));
      }));
    }
    this.#closed = 'have finished';
    then();
  })()`,
    fails: ids(`
      2.1.1 2.1.2 2.1.3 2.2.1 2.3.1 2.5.1 2.6.1 3.2.1 4.1.1 4.1.2 4.1.3 4.1.4 4.1.5 4.1.6 4.2.1 4.4.1 4.4.2 4.4.3
      10.1.1 10.1.2 10.2.1 10.3.1 10.3.2`),
  },
  {
    name: 'reversed: the last task added runs first',
    file: 'background.ts',
    from: EACH,
    to: `this.#tasks.reverse();\n    ${EACH}`,
    fails: ids(`
      2.1.1 2.1.2 2.1.3 2.2.1 2.2.2 2.3.1 2.4.1 2.4.2 2.5.1 2.6.1 3.1.3 3.2.1 3.2.2 3.2.3 4.1.1 4.1.2 4.1.3 4.1.4
      4.1.5 4.1.6 4.2.1 4.4.1 4.4.2 4.4.3 4.4.4 4.4.5 7.1.1 7.1.2 7.1.4 10.1.1 10.1.2 10.2.1 10.3.1 10.3.2`),
  },
  {
    name: 'twice: each task runs, and then again',
    file: 'background.ts',
    from: WAIT,
    to: `${WAIT}\n        await task.fn(...task.args);`,
    fails: ids(`
      1.1.1 1.1.2 1.2.1 1.3.1 1.3.2 1.3.3 1.3.4 1.3.5 1.4.1 1.4.2 2.1.1 2.1.2 2.1.3 2.2.1 2.2.2 2.3.1 2.3.2 2.4.1
      2.4.2 2.5.1 2.5.2 2.6.1 3.1.3 3.2.1 3.2.2 3.2.3 4.1.1 4.1.2 4.1.3 4.1.4 4.1.5 4.1.6 4.2.1 4.4.1 4.4.2 4.4.3
      4.4.4 4.4.5 4.5.1 4.7.1 5.1.1 5.1.2 5.2.1 5.3.1 5.4.1 7.1.1 7.1.2 7.1.3 7.1.4 7.2.1 7.3.1 7.3.2 7.4.1 7.4.2
      10.1.1 10.1.2 10.1.3 10.2.1 10.3.1 10.3.2 10.4.1`),
  },
  {
    name: 'a task that has failed is tried again',
    file: 'background.ts',
    from: FAIL,
    to: `await Promise.resolve(task.fn(...task.args)).catch(() => {});\n        ${FAIL}`,
    fails: ids(`
      2.4.2 3.2.1 3.2.2 3.2.3 3.3.1 3.3.2 3.4.1 3.4.2 5.3.1 7.1.4 10.5.1`),
  },
  {
    name: 'drops: no task runs',
    file: 'fixtures/conformance/reference.ts',
    from: BODY,
    to: `if (plan.handler[0]?.id !== 'fence') tasks.discard('lost');\n    ${BODY}`,
    fails: ids(`
      1.1.1 1.1.2 1.2.1 1.3.1 1.3.2 1.3.3 1.3.4 1.3.5 1.4.1 1.4.2 2.1.1 2.1.2 2.1.3 2.2.1 2.2.2 2.3.1 2.3.2 2.4.1
      2.4.2 2.5.1 2.5.2 2.6.1 3.1.1 3.1.2 3.1.3 3.1.4 3.2.1 3.2.2 3.2.3 3.3.1 3.3.2 3.4.1 3.4.2 4.1.1 4.1.2 4.1.3
      4.1.4 4.1.5 4.1.6 4.2.1 4.4.1 4.4.2 4.4.3 4.4.4 4.4.5 4.5.1 4.7.1 5.1.1 5.1.2 5.2.1 5.3.1 5.4.1 7.1.1 7.1.2
      7.1.3 7.1.4 7.2.1 7.3.1 7.3.2 7.4.1 7.4.2 7.5.1 10.1.1 10.1.2 10.1.3 10.2.1 10.3.1 10.3.2 10.4.1 10.5.1`),
  },
  {
    name: 'drops the last: of several tasks the last one does not run',
    file: 'background.ts',
    from: EACH,
    to: `const last = this.#tasks.length > 1 ? this.#tasks.length - 1 : Infinity;
    ${EACH}
      if (this.#started === last) break;`,
    fails: ids(`
      2.1.1 2.1.2 2.1.3 2.2.1 2.2.2 2.3.1 2.4.1 2.4.2 2.5.1 2.6.1 3.1.3 3.2.1 3.2.2 3.2.3 4.1.1 4.1.2 4.1.3 4.1.4
      4.1.5 4.1.6 4.2.1 4.4.1 4.4.2 4.4.3 4.4.4 4.4.5 7.1.1 7.1.2 7.1.4 10.1.1 10.1.2 10.2.1 10.3.1 10.3.2`),
  },
  {
    name: 'a queue has room for ten tasks',
    file: 'background.ts',
    from: EACH,
    to: `${EACH}\n      if (this.#started === 10) this.discard('full');`,
    fails: ['2.1.3'],
  },
  {
    name: 'blocking tasks run after all others',
    file: 'fixtures/conformance/reference.ts',
    from: 'for (const { id, kind, adds } of list) {',
    to: "for (const { id, kind, adds } of list.toSorted((a, b) => a.kind.localeCompare(b.kind))) {",
    fails: ['2.1.2', '2.2.2', '3.2.3'],
  },
  {
    name: 'blocking tasks run twice',
    file: 'fixtures/conformance/reference.ts',
    from: 'callSync(plan, id);',
    to: 'callSync(plan, id); callSync(plan, id);',
    fails: ['1.3.2', '1.4.2', '2.1.2', '2.2.2'],
  },
  {
    name: 'a blocking task is not waited for',
    file: 'fixtures/conformance/reference.ts',
    from: 'callSync(plan, id); queue(tasks, plan, adds);',
    to: "setTimeout(() => call(plan, id).catch(console.error), 100);",
    fails: ['2.1.2', '2.2.2'],
  },
  {
    name: 'the tasks of all requests wait in one line',
    file: 'server.ts',
    from: RUN,
    to: `const line = Promise.resolve(Reflect.get(globalThis, 'line')).then(() => tasks.run());
    Reflect.set(globalThis, 'line', line);
    void line.then(then);`,
    fails: ['2.2.1', '2.4.1', '2.4.2', '2.6.1', '4.4.3', '4.4.4', '4.4.5', '5.1.1', '5.1.2', '7.1.4'],
  },
  {
    name: 'a failed task drops the tasks of every other request',
    file: 'server.ts',
    from: 'new BackgroundTasks({ request, afterFailure, onTaskError })',
    to: `new BackgroundTasks({ request, afterFailure, onTaskError: (error: unknown) => {
      report('failed', error);
      for (const other of [...scopes]) if (other.request !== request) other.tasks.discard('a task failed');
    } })`,
    fails: ['2.4.2', '7.1.4'],
  },
  {
    name: 'the tasks of at most four requests run at a time',
    file: 'server.ts',
    from: RUN,
    to: `void (async () => {
      const running = (more: number): number => {
        const count = Number(Reflect.get(globalThis, 'running') ?? 0) + more;
        Reflect.set(globalThis, 'running', count);
        return count;
      };
      while (running(0) >= 4) await new Promise(setImmediate);
      running(1);
      await tasks.run();
      running(-1);
      then();
    })();`,
    fails: ['5.1.2'],
  },
  {
    name: 'loses a task added while running',
    file: 'background.ts',
    from: EACH,
    to: `const count = this.#tasks.length;
    ${EACH}
      if (this.#started === count) break;`,
    fails: ['2.5.1', '2.5.2', '7.1.3'],
  },
  {
    name: 'a task that a running task adds is the next one',
    file: 'background.ts',
    from: 'this.#tasks.push(task)',
    to: 'this.#tasks.splice(this.#started > 0 ? this.#started : this.#tasks.length, 0, task)',
    fails: ['2.5.1'],
  },
  {
    name: 'a task that a running task adds starts at once',
    file: 'background.ts',
    from: 'this.#tasks.push(task)',
    to: '(this.#started > 0 ? fn(...args) : this.#tasks.push(task))',
    fails: ['2.5.1', '7.1.3'],
  },
  {
    name: 'a task that the last one adds comes too late',
    file: 'background.ts',
    from: START,
    to: `${START}
      if (this.#started === this.#tasks.length) this.#closed = 'have finished';`,
    fails: ['2.5.2', '7.1.3'],
  },

  // 3: errors stay inside
  {
    name: 'stops after an error, where it is to continue',
    file: 'background.ts',
    from: "if (afterFailure === 'stop')",
    to: "if (afterFailure !== 'stop')",
    fails: ['3.2.1', '3.2.2', '3.2.3'],
  },
  {
    name: 'stops after an error, except where the first task fails',
    file: 'background.ts',
    from: "if (afterFailure === 'stop')",
    to: 'if (info.index > 0)',
    fails: ['3.2.2'],
  },
  {
    name: 'a failed task ends its queue, and the clean-up does not run',
    file: 'background.ts',
    from: FAIL,
    to: `${FAIL}\n        throw error;`,
    fails: ['3.2.1', '3.2.2', '3.2.3', '7.1.4', '10.5.1'],
  },
  {
    name: 'crashes: the error of a task ends the process',
    file: 'background.ts',
    from: FAIL,
    to: 'queueMicrotask(() => { throw error; });',
    fails: ['2.4.2', '3.2.1', '3.2.2', '3.2.3', '3.3.1', '3.3.2', '5.3.1', '7.1.4', '10.5.1'],
  },
  {
    name: 'crashes: the error of a blocking task ends the process',
    file: 'background.ts',
    from: `const result = ${CALL};`,
    to: `let result: unknown;
        try { result = ${CALL}; } catch (error) { queueMicrotask(() => { throw error; }); }`,
    fails: ['3.2.3', '3.3.2'],
  },
  {
    name: 'a failed task closes the connection (uvicorn)',
    file: 'background.ts',
    from: ERROR,
    to: `${ERROR}\n    info.request?.socket.destroy();`,
    fails: ['5.3.1'],
  },
  {
    name: 'a failure is not reported',
    file: 'background.ts',
    from: 'onTaskError = () => report(',
    to: 'onTaskError = () => (() => {})(',
    fails: ['3.4.1', '3.4.2'],
  },
  {
    name: 'a failure is reported without its message',
    file: 'background.ts',
    from: 'failed (${info.name}):`, error)',
    to: 'failed (${info.name})`)',
    fails: ['3.4.1', '3.4.2'],
  },

  // 4: whatever the response
  {
    name: 'a returned 4xx or 5xx drops the tasks',
    file: 'server.ts',
    from: HANDLE,
    to: handled("if (value instanceof Response && value.status >= 400) scope.tasks.discard('an error');"),
    fails: ['4.1.3', '4.1.4', '4.1.5', '4.1.6'],
  },
  {
    name: 'a returned 5xx drops the tasks',
    file: 'server.ts',
    from: HANDLE,
    to: handled("if (value instanceof Response && value.status >= 500) scope.tasks.discard('an error');"),
    fails: ['4.1.5', '4.1.6'],
  },
  {
    name: 'a status other than 200 drops the tasks',
    file: 'server.ts',
    from: HANDLE,
    to: handled("if (value instanceof Response && value.status !== 200) scope.tasks.discard('not 200');"),
    fails: ids(`
      3.1.1 3.1.2 3.1.3 4.1.1 4.1.2 4.1.3 4.1.4 4.1.5 4.1.6`),
  },
  {
    name: 'a response without a body drops the tasks',
    file: 'server.ts',
    from: HANDLE,
    to: handled("if (value instanceof Response && !value.body) scope.tasks.discard('no body');"),
    fails: ['2.3.2', '4.1.2'],
  },
  {
    name: 'a 204 drops the tasks',
    file: 'server.ts',
    from: HANDLE,
    to: handled("if (value instanceof Response && value.status === 204) scope.tasks.discard('no content');"),
    fails: ['4.1.2'],
  },
  {
    name: 'a HEAD drops the tasks',
    file: 'server.ts',
    from: HANDLE,
    to: handled("if (res.req.method === 'HEAD') scope.tasks.discard('no body');"),
    fails: ['4.2.1'],
  },
  {
    name: 'a streamed response drops the tasks',
    file: 'fixtures/conformance/reference.ts',
    from: BODY,
    to: `if (plan.stream) tasks.discard('streamed');\n    ${BODY}`,
    fails: ['1.2.1', '1.3.3', '3.1.4', '4.4.3', '4.5.1', '4.7.1'],
  },
  {
    name: 'a throw runs the tasks, where it is to discard them',
    file: 'deps.ts',
    from: "this.tasks.discard('the handler or a dependency threw');",
    to: '',
    fails: ['4.3.1', '4.3.2', '4.3.3', '4.3.4'],
  },
  {
    name: 'only an HTTP error discards the tasks',
    file: 'deps.ts',
    from: "this.tasks.discard('the handler or a dependency threw');",
    to: "if (error instanceof HTTPError) this.tasks.discard('refused');",
    fails: ['4.3.2', '4.3.4'],
  },
  {
    name: 'only an error that is no HTTP error discards the tasks',
    file: 'deps.ts',
    from: "this.tasks.discard('the handler or a dependency threw');",
    to: "if (!(error instanceof HTTPError)) this.tasks.discard('broken');",
    fails: ['4.3.1', '4.3.3'],
  },
  {
    name: 'the tasks run before the error response where a dependency throws',
    file: 'deps.ts',
    from: 'this.#resolve(substitute(inputs, this.app.overrides))',
    to: `(async () => this.#resolve(substitute(inputs, this.app.overrides)))().catch(async (error: unknown) => {
      await this.tasks.run();
      throw error;
    })`,
    fails: ['4.3.3', '4.3.4'],
  },
  {
    name: 'cancels on disconnect: a client that leaves before the handler returns drops the tasks (starlette #1438)',
    file: 'server.ts',
    from: HANDLE,
    to: handled("if (scope.request.socket.destroyed) scope.tasks.discard('the client has left');"),
    fails: ['4.4.1', '4.4.2'],
  },
  {
    name: 'cancels on disconnect: a client that leaves while the response is being sent drops the tasks',
    file: 'fixtures/conformance/reference.ts',
    from: 'ReadableStream.from(pieces(plan))',
    to: `new ReadableStream({
      async start(controller) {
        for await (const piece of pieces(plan)) controller.enqueue(piece);
        controller.close();
      },
      cancel: () => void tasks.discard('the client has left'),
    })`,
    fails: ['4.4.3'],
  },
  {
    name: 'cancels on disconnect: the reset of a kept connection drops the tasks that have not started',
    file: 'server.ts',
    from: RUN,
    to: `request.socket.once('close', (reset) => reset && tasks.discard('the client has left'));
    ${RUN}`,
    fails: ['4.4.5'],
  },
  {
    name: 'a handler whose client has left never returns',
    file: 'server.ts',
    from: HANDLE,
    to: handled('if (scope.request.socket.destroyed) return new Promise<never>(() => {});'),
    fails: ['4.4.1', '4.4.2'],
  },
  {
    name: 'a source that breaks drops the tasks, where they are to run',
    file: 'fixtures/conformance/reference.ts',
    from: 'ReadableStream.from(pieces(plan))',
    to: `ReadableStream.from((async function* () {
      try { yield* pieces(plan); } catch (error) { tasks.discard('broken'); throw error; }
    })())`,
    fails: ['4.5.1', '4.7.1'],
  },
  {
    name: 'a source that breaks holds the response, and its tasks, for ever',
    file: 'server.ts',
    from: 'res.destroy();',
    to: 'if (!res.socket) res.destroy();',
    fails: ['4.5.1'],
  },
  {
    name: 'a source that breaks behind another response holds its tasks for ever',
    file: 'server.ts',
    from: 'res.destroy();',
    to: 'if (res.socket) res.destroy();',
    fails: ['4.7.1'],
  },

  // 5: the connection is free
  {
    name: 'blocks the process: a request waits for the tasks of all before it',
    file: 'server.ts',
    from: HANDLE,
    to: `(async () => {
        const before = [...scopes].filter((other) => other !== scope);
        const isHeld = (): boolean => scope.request.method === 'POST' && before.some((other) => scopes.includes(other));
        while (isHeld()) await new Promise(setImmediate);
        return ${HANDLE};
      })()`,
    fails: ids(`
      1.1.1 1.1.2 1.2.1 2.2.1 2.4.1 2.4.2 2.6.1 4.4.1 4.4.2 4.4.3 4.4.4 4.4.5 4.7.1 5.1.1 5.1.2 5.2.1 5.4.1 7.1.4
      10.3.1 10.3.2`),
  },
  {
    name: 'blocks the connection: a request waits for the tasks of those before it (starlette #2093)',
    file: 'server.ts',
    from: HANDLE,
    to: `(async () => {
        const { request: { socket } } = scope;
        const before = [...scopes].filter((other) => other !== scope && other.request.socket === socket);
        while (before.some((other) => scopes.includes(other))) await new Promise(setImmediate);
        return ${HANDLE};
      })()`,
    fails: ['5.2.1', '5.4.1'],
  },
  {
    name: 'every response closes its connection',
    file: 'server.ts',
    from: 'if (closing && connections.get(',
    to: "headers.connection = 'close';\n    if (closing && connections.get(",
    fails: ['5.2.1', '5.3.1', '5.4.1'],
  },
  {
    name: 'a request joins the queue of one whose handler is at work',
    file: 'server.ts',
    from: 'new BackgroundTasks({ request, afterFailure, onTaskError })',
    to: `[...scopes].find((other) => connections.get(other.request.socket)?.responses)?.tasks
      ?? new BackgroundTasks({ request, afterFailure, onTaskError })`,
    fails: ['1.1.1', '1.1.2', '1.2.1', '4.7.1', '10.3.1', '10.3.2'],
  },

  // 7: the stop
  {
    name: 'loses tasks at shutdown: the process ends at once',
    file: 'server.ts',
    from: '(await app.close())',
    to: '(process.exit(0) ?? await app.close())',
    fails: ['7.1.1', '7.1.2', '7.1.3', '7.1.4', '7.2.1'],
  },
  {
    name: 'no signal is handled',
    file: 'server.ts',
    from: "process.on('SIGINT', stop).on('SIGTERM', stop);",
    to: 'void stop;',
    fails: ['7.1.1', '7.1.2', '7.1.3', '7.1.4', '7.2.1', '7.4.1', '7.4.2'],
  },
  {
    name: 'SIGINT is not handled',
    file: 'server.ts',
    from: "process.on('SIGINT', stop).on('SIGTERM', stop);",
    to: "process.on('SIGTERM', stop);",
    fails: ['7.1.2'],
  },
  {
    name: 'SIGTERM is ignored',
    file: 'server.ts',
    from: ".on('SIGTERM', stop)",
    to: ".on('SIGTERM', () => {})",
    fails: ['7.1.1', '7.1.3', '7.1.4', '7.2.1', '7.3.1', '7.3.2', '7.4.1', '7.4.2'],
  },
  {
    name: 'loses tasks at shutdown: those that have not started are dropped',
    file: 'server.ts',
    from: 'const closed = server &&',
    to: "for (const { tasks } of scopes) tasks.discard('the server stops');\n    const closed = server &&",
    fails: ['7.1.1', '7.1.2', '7.1.3', '7.1.4', '7.2.1'],
  },
  {
    name: 'loses tasks at shutdown: a running task can add no more',
    file: 'server.ts',
    from: 'const closed = server &&',
    to: `for (const { tasks } of scopes) tasks.addTask = () => { throw new Error('the server stops'); };
    const closed = server &&`,
    fails: ['7.1.3'],
  },
  {
    name: 'a task that fails after the signal ends the process',
    file: 'server.ts',
    from: 'new BackgroundTasks({ request, afterFailure, onTaskError })',
    to: `new BackgroundTasks({ request, afterFailure, onTaskError: (error: unknown) => {
      report('failed', error);
      if (closing) process.exit(1);
    } })`,
    fails: ['7.1.4'],
  },
  {
    name: 'cuts responses in progress at shutdown',
    file: 'server.ts',
    from: 'if (responses === 0) socket.destroySoon();\n    const timers',
    to: 'if (responses >= 0) socket.destroy();\n    const timers',
    fails: ['7.2.1'],
  },
  {
    name: 'an idle connection holds the process at shutdown',
    file: 'server.ts',
    from: 'if (responses === 0) socket.destroySoon();\n    const timers',
    to: 'if (responses < 0) socket.destroySoon();\n    const timers',
    fails: ['7.3.1', '7.3.2'],
  },
  {
    name: 'a connection that has sent nothing holds the process at shutdown (node #63452)',
    file: 'server.ts',
    from: 'if (responses === 0) socket.destroySoon();\n    const timers',
    to: 'if (responses === 0 && socket.bytesRead > 0) socket.destroySoon();\n    const timers',
    fails: ['7.3.2'],
  },
  {
    name: 'the exit code of a stop is that of the signal',
    file: 'server.ts',
    from: '.unfinished.length > 0 ? 1 : 0',
    to: '.unfinished.length > 0 ? 1 : 128 + number',
    fails: ['7.4.1', '7.4.2'],
  },
  {
    name: 'the second signal is ignored',
    file: 'server.ts',
    from: 'if (signals++ > 0) process.exit(128 + number);',
    to: 'if (signals++ > 0) return;',
    fails: ['7.5.1'],
  },

  // 10: dependencies
  {
    name: 'a queue per dependency: the tasks of a dependency are lost',
    file: 'deps.ts',
    from: 'if (values === rejected) return rejected;',
    to: `if (values === rejected) return rejected;
    if ('tasks' in values) Object.assign(values, { tasks: new BackgroundTasks() });`,
    fails: ['1.1.2', '1.3.5', '10.1.1', '10.1.2', '10.1.3', '10.2.1', '10.3.1', '10.3.2'],
  },
  {
    name: 'a queue is that of its connection',
    file: 'server.ts',
    from: 'new BackgroundTasks({ request, afterFailure, onTaskError })',
    to: `(Reflect.get(request.socket, 'tasks') ?? (Reflect.set(request.socket, 'tasks',
      new BackgroundTasks({ request, afterFailure, onTaskError })), Reflect.get(request.socket, 'tasks')))`,
    fails: ['5.3.1'],
  },
  {
    name: 'a task joins the queue of the latest request',
    file: 'deps.ts',
    from: 'builtIn((scope) => scope.tasks)',
    to: `builtIn((scope) => {
  Reflect.set(globalThis, 'latest', scope);
  const addTask: BackgroundTasks['addTask'] = (...args) => Reflect.get(globalThis, 'latest').tasks.addTask(...args);
  return { addTask } as BackgroundTasks;
})`,
    fails: ['10.3.2'],
  },
  {
    name: 'a queue per dependency: that of a dependency runs after that of the handler',
    file: 'deps.ts',
    from: 'if (values === rejected) return rejected;',
    to: `if (values === rejected) return rejected;
    if ('tasks' in values) {
      const own = new BackgroundTasks({ request: this.request });
      Object.assign(values, { tasks: own });
      this.cleanUps.unshift(async (thrown) => {
        if (thrown) own.discard('thrown');
        if (thrown) throw thrown.error;
        await own.run();
      });
    }`,
    fails: ['10.1.1', '10.1.2', '10.2.1', '10.3.1', '10.3.2'],
  },
  {
    name: 'no cache: a dependency that is reached by two paths runs twice',
    file: 'deps.ts',
    from: 'if (!values.has(inputs)) ',
    to: '',
    fails: ['10.1.2', '10.2.1'],
  },
  {
    name: 'cleans up first: a dependency cleans up before the tasks (fastapi 0.106)',
    file: 'server.ts',
    from: WAIT_FOR_TASKS,
    to: `await new Promise<void>((resolve) => whenDone(res, resolve));
    await scope.unwind({ onTaskError });
    await new Promise<void>((resolve) => runTasks(scope, res, resolve));`,
    fails: ['10.4.1', '10.5.1'],
  },
  {
    name: 'cleans up before the response',
    file: 'server.ts',
    from: HANDLE,
    to: handled('await scope.unwind({ onTaskError });'),
    fails: ['10.4.1', '10.5.1'],
  },
  {
    name: 'no clean-up runs',
    file: 'deps.ts',
    from: 'tasks.addTask(cleanUp);',
    to: 'void cleanUp;',
    fails: ['10.4.1', '10.5.1'],
  },
  {
    name: 'a throw skips the clean-up',
    file: 'deps.ts',
    from: 'let thrown: { error: unknown } | undefined = { error };',
    to: 'let thrown: { error: unknown } | undefined = { error };\n    this.cleanUps.length = 0;',
    fails: ['10.6.1'],
  },

  // What is declared is not what is done
  {
    name: "afterFailure is declared 'stop', and the tasks run",
    file: 'fixtures/conformance/reference.ts',
    from: "options.afterFailure ?? 'continue'",
    to: "'stop'",
    fails: ['3.2.1', '3.2.2', '3.2.3'],
  },
  {
    name: "onThrow is declared 'run', and the tasks are discarded",
    file: 'fixtures/conformance/reference.ts',
    from: "onThrow: 'discard'",
    to: "onThrow: 'run'",
    fails: ['4.3.1', '4.3.2', '4.3.3', '4.3.4'],
  },
  {
    name: "brokenStream is declared 'drop', and the tasks run",
    file: 'fixtures/conformance/reference.ts',
    from: "brokenStream: 'run'",
    to: "brokenStream: 'drop'",
    fails: ['4.5.1'],
  },
  {
    name: "cleanUp is declared 'before', and comes after the tasks",
    file: 'fixtures/conformance/reference.ts',
    from: "cleanUp: 'after'",
    to: "cleanUp: 'before'",
    fails: ['10.4.1'],
  },
  {
    name: "concurrency is declared 'parallel', and the tasks run one by one",
    file: 'fixtures/conformance/reference.ts',
    from: "concurrency: 'serial'",
    to: "concurrency: 'parallel'",
    fails: ['2.6.1'],
  },
];

export const unitMutants: readonly UnitMutant[] = [
  // 1: the response first
  {
    name: 'a task that blocks the thread delays the end of file',
    file: 'background.ts',
    from: 'if (sent.push(then) === 1) setImmediate(() => sent.splice(0).forEach((f) => f()));',
    to: 'then();',
    tests: 'test/background.test.ts',
    pattern: '^1 what blocks the thread right after responseDone does not delay .* of `Connection: close`',
  },
  {
    name: 'the tasks of a reader that takes nothing start before it is gone',
    file: 'server.ts',
    from: 'socket.writableLength > 0 && socket.destroy()',
    to: `socket.writableLength > 0
      && (scopes.forEach(({ tasks }) => void tasks.run()), setImmediate(() => socket.destroy()))`,
    tests: 'test/server.test.ts',
    pattern: '^1 a reader of a JSON value that takes nothing',
  },
  {
    name: 'a slow stream counts as a reader that takes nothing',
    file: 'server.ts',
    from: 'socket.writableLength > 0 && socket.destroy()',
    to: 'socket.destroy()',
    tests: 'test/server.test.ts',
    pattern: '^1 a stream that is quiet for longer',
  },
  {
    name: 'the timeout of a response stays on its connection',
    file: 'server.ts',
    from: "res.prependListener('finish', () => socket.setTimeout(0));",
    to: '',
    tests: 'test/server.test.ts',
    pattern: '^1 the stallTimeoutMs of a response ends with it: no kept',
  },
  {
    name: 'with the timeout of a response, that of an idle connection is gone',
    file: 'server.ts',
    from: "res.prependListener('finish', () => socket.setTimeout(0));",
    to: "res.on('finish', () => socket.setTimeout(0));",
    tests: 'test/server.test.ts',
    pattern: '^1 the stallTimeoutMs of a response ends with it: Node closes',
  },
  {
    name: 'a response that finishes after its client has left is done twice',
    file: 'background.ts',
    from: 'if (at < 0) return;',
    to: '',
    tests: 'test/background.test.ts',
    pattern: '^1 whenDone calls once',
  },
  {
    name: 'the reader of a response that is no stream may take nothing for ever',
    file: 'server.ts',
    from: 'if (!res.writableEnded || res.writableLength > 0) limitStall(res);',
    to: 'if (!res.writableEnded) limitStall(res);',
    tests: 'test/server.test.ts',
    pattern: '^1 a reader of a head without a body that takes nothing for stallTimeoutMs',
  },
  {
    name: 'the error of a response that the host has ended is lost, and the request stays pending',
    file: 'server.ts',
    from: 'if (!res.headersSent) sendJson',
    to: 'sendJson',
    tests: 'test/server.test.ts',
    pattern: '^a response that the host has ended',
  },
  {
    name: 'a Response of another realm is sent as JSON',
    file: 'server.ts',
    from: "value?.[Symbol.toStringTag] !== 'Response'",
    to: '!(value instanceof Response)',
    tests: 'test/server.test.ts',
    pattern: '^a Response of another realm',
  },
  // 2: in order, one at a time, once
  {
    name: 'a connection holds its first response',
    file: 'background.ts',
    from: "socket.on('close', tell)",
    to: "socket.on('close', tell).on('close', () => res.destroy())",
    tests: 'test/background.test.ts',
    pattern: '^a kept connection holds no response that is out',
  },
  {
    name: 'the error of a response that was destroyed behind another is lost',
    file: 'background.ts',
    from: 'this.errored ?? undefined',
    to: '',
    tests: 'test/background.test.ts',
    pattern: '^1 the error that a response behind another is destroyed with',
  },
  {
    name: 'a response that is out gathers listeners',
    file: 'background.ts',
    from: 'return done();',
    to: 'done();',
    tests: 'test/background.test.ts',
    pattern: '^1 responseDone leaves no listener',
  },
  {
    name: 'a task that is added too late is lost without a word',
    file: 'background.ts',
    from: 'throw new Error(`Too late',
    to: 'if (!this.#closed) throw new Error(`Too late',
    tests: 'test/background.test.ts',
    pattern: '^2 adding after the queue has finished',
  },
  {
    name: 'a task that is added to a discarded queue is lost without a word',
    file: 'background.ts',
    from: 'this.#closed ??= `were discarded: ${reason}`;',
    to: '',
    tests: 'test/background.test.ts',
    pattern: '^2 adding after discard\\(\\)',
  },
  {
    name: 'a task that calls run() starts the queue again',
    file: 'background.ts',
    from: '(this.#end ??= this.#runInOrder())',
    to: 'this.#runInOrder()',
    tests: 'test/background.test.ts',
    pattern: '^2 a task that start\\(\\) runs may call run',
  },
  {
    name: 'run() starts a task before it returns',
    file: 'background.ts',
    from: 'Promise.resolve().then(() => (this.#end ??= this.#runInOrder()))',
    to: '(this.#end ??= this.#runInOrder())',
    tests: 'test/background.test.ts',
    pattern: '^2 run\\(\\) starts no task before it returns',
  },
  {
    name: 'run() twice runs the tasks twice',
    file: 'background.ts',
    from: '(this.#running ??= Promise.resolve().then(() => (this.#end ??= this.#runInOrder())))',
    to: 'Promise.resolve().then(() => { this.#started = 0; return this.#runInOrder(); })',
    tests: 'test/background.test.ts',
    pattern: '^2 run\\(\\) twice',
  },
  // 3: errors stay inside
  {
    name: 'onTaskError is not awaited',
    file: 'background.ts',
    from: 'await (async () => onTaskError(',
    to: 'void (async () => onTaskError(',
    tests: 'test/background.test.ts',
    pattern: '^3 onTaskError replaces',
  },
  {
    name: 'onTaskError does not replace the report',
    file: 'background.ts',
    from: ERROR,
    to: `${ERROR}
    report('failed', error);`,
    tests: 'test/background.test.ts',
    pattern: '^3 onTaskError replaces',
  },
  {
    name: 'an onTaskError that fails hides the error of the task',
    file: 'background.ts',
    from: 'and so did onTaskError:`, error, reporterError',
    to: 'and so did onTaskError:`, reporterError',
    tests: 'test/background.test.ts',
    pattern: '^3 .* of onTaskError puts both errors on stderr',
  },
  {
    name: 'an onTaskError that fails ends the queue',
    file: 'background.ts',
    from: '.catch((reporterError: unknown) =>\n',
    to: '.catch(Promise.reject.bind(Promise)).catch((reporterError: unknown) =>\n      reporterError === 0 && ',
    tests: 'test/background.test.ts',
    pattern: '^3 .* of onTaskError puts both errors on stderr',
  },
  {
    name: 'an error that cannot be printed ends the queue',
    file: 'background.ts',
    from: "} catch { console.error('%s (it cannot be printed)', message); }",
    to: '} catch (error) { throw error; }',
    tests: 'test/background.test.ts',
    pattern: '^3 an onTaskError that throws what cannot be printed',
  },
  {
    name: 'a name that cannot be read ends the queue',
    file: 'background.ts',
    from: '} catch { return { name: place, index, request }; }',
    to: '} catch (error) { throw error; }',
    tests: 'test/background.test.ts',
    pattern: '^3 a task with a name that throws',
  },
  {
    name: 'a dropped task is not reported',
    file: 'background.ts',
    from: 'report(`Dropped task ${name}`)',
    to: 'void name',
    tests: 'test/background.test.ts',
    pattern: "^3 afterFailure 'stop' drops the rest",
  },
  // 4: whatever the response
  {
    name: 'a discarded queue is told to nobody',
    file: 'background.ts',
    from: DROPPED,
    to: '',
    tests: 'test/deps.test.ts',
    pattern: '^4 after a throw the queue is discarded',
  },
  {
    name: 'a discarded queue is on stderr',
    file: 'background.ts',
    from: DROPPED,
    to: `${DROPPED}\n    for (const { name } of dropped) report(\`Dropped \${name}\`);`,
    tests: 'test/deps.test.ts',
    pattern: '^4 after a throw the queue is discarded',
  },
  // 6: fair
  {
    name: 'the event loop has no turn between tasks',
    file: 'background.ts',
    from: 'if (performance.now() >= sliceEnd) await nextSlice();',
    to: '',
    tests: 'test/background.test.ts',
    pattern: '^6 an immediate that the first of three tasks',
  },
  {
    name: 'each queue has a slice of its own',
    file: 'background.ts',
    from: '(performance.now() < sliceEnd ? undefined : begin())',
    to: 'begin()',
    tests: 'test/background.test.ts',
    pattern: '^6 thirty queues with short tasks',
  },
  {
    name: 'one turn of the event loop is for all queues that wait',
    file: 'background.ts',
    from: '(turn = turn.then(() => (performance.now() < sliceEnd ? undefined : begin())))',
    to: 'begin()',
    tests: 'test/background.test.ts',
    pattern: '^6 thirty queues with tasks of more than 10 ms',
  },
  {
    name: 'the slice is 100 ms',
    file: 'background.ts',
    from: 'sliceEnd = performance.now() + 10;',
    to: 'sliceEnd = performance.now() + 100;',
    tests: 'test/background.test.ts',
    pattern: '^6 short tasks',
  },
  // 7: the stop
  {
    name: 'the exit code after the deadline is 0',
    file: 'server.ts',
    from: '.unfinished.length > 0 ? 1 : 0',
    to: '.unfinished.length > 0 ? 0 : 0',
    tests: 'test/shutdown.test.ts',
    pattern: '^7 at the deadline the unfinished tasks and requests',
  },
  {
    name: 'the process exits before what it has written was read',
    file: 'server.ts',
    from: "process.stdout.write('', () => process.stderr.write('', () => process.exit()));",
    to: 'process.exit();',
    tests: 'test/shutdown.test.ts',
    pattern: '^7 the process exits when what it has written was read',
  },
  {
    name: 'what is unfinished at the deadline has no name',
    file: 'server.ts',
    from: 'tasks.unfinished.map(({ name }) => name)',
    to: "tasks.unfinished.map(() => 'task')",
    tests: 'test/shutdown.test.ts',
    pattern: '^7 at the deadline tasks and requests are named',
  },
  {
    name: 'what has not started at the deadline starts all the same',
    file: 'server.ts',
    from: "tasks.discard('the server has stopped');",
    to: '',
    tests: 'test/shutdown.test.ts',
    pattern: '^7 at the deadline tasks and requests are named',
  },
  {
    name: 'responses have the whole of drainTimeoutMs, and their tasks nothing',
    file: 'server.ts',
    from: 'setTimeout(disconnect, drainTimeoutMs / 2)',
    to: 'setTimeout(disconnect, drainTimeoutMs)',
    tests: 'test/shutdown.test.ts',
    pattern: '^7 at half of drainTimeoutMs',
  },
  {
    name: 'a response during the stop does not close its connection',
    file: 'server.ts',
    from: "headers.connection = 'close'",
    to: 'void headers',
    tests: 'test/shutdown.test.ts',
    pattern: '^7 a request that arrives on a kept connection',
  },
  {
    name: 'pipelined responses during the stop are cut',
    file: 'server.ts',
    from: '?.responses === 1) headers',
    to: '?.responses) headers',
    tests: 'test/shutdown.test.ts',
    pattern: '^7 pipelined answers',
  },
  {
    name: 'the server goes on accepting after the signal',
    file: 'server.ts',
    from: "once(net.Server.prototype.close.call(server), 'close')",
    to: 'Promise.resolve()',
    tests: 'test/shutdown.test.ts',
    pattern: '^7 after SIGTERM the process accepts nothing',
  },
  {
    name: 'the stop cuts a response that a slow reader has not taken',
    file: 'server.ts',
    from: 'net.Server.prototype.close.call(server)',
    to: 'server.close()',
    tests: 'test/shutdown.test.ts',
    pattern: '^7 a slow reader gets all of a large JSON answer',
  },
  // 8: the context follows
  {
    name: 'a task runs in the context of the response',
    file: 'background.ts',
    from: CALL,
    to: 'task.fn(...task.args)',
    tests: 'test/background.test.ts',
    pattern: '^8 a task runs in the async context',
  },
  {
    name: 'onTaskError runs in the context of the response',
    file: 'background.ts',
    from: FAIL,
    to: 'await this.#fail(task, error);',
    tests: 'test/background.test.ts',
    pattern: '^8 a task runs in the async context',
  },
  {
    name: 'a lazy thenable runs in the context of the response',
    file: 'background.ts',
    from: WAIT,
    to: 'if (isThenable(result)) await result;',
    tests: 'test/background.test.ts',
    pattern: '^8 a lazy thenable',
  },
  {
    name: 'the source of a stream is cancelled in the context of another request',
    file: 'server.ts',
    from: 'responseDone(res).then(() => { over.abort(); return reader.cancel(); }).catch(() => {});',
    to: 'whenDone(res, () => { over.abort(); reader.cancel().catch(() => {}); });',
    tests: 'test/server.test.ts',
    pattern: '^8 the source of a stream is cancelled',
  },
  {
    name: 'a clean-up runs in the context of another request',
    file: 'server.ts',
    from: `${WAIT_FOR_TASKS}
    if (scope.cleanUps.length > 0) await scope.unwind({ onTaskError });
    leave(scope);`,
    to: `runTasks(scope, res, async () => {
      if (scope.cleanUps.length > 0) await scope.unwind({ onTaskError });
      leave(scope);
    });`,
    tests: 'test/server.test.ts',
    pattern: '^8 the clean-ups of a pipelined request',
  },
  // 9: visible
  ...[[START, 'start'], [END, 'end']].map(([from = '', event]) => ({
    name: `the ${event} of a task is told in the context of another request`,
    file: 'background.ts' as const,
    from,
    to: `channels.${event}.publish(this.#info(task));`,
    tests: 'test/server.test.ts',
    pattern: '^9 the channels tell of the tasks of a pipelined request',
  })),
  {
    name: 'the error of a task is told in the context of another request',
    file: 'background.ts',
    from: FAIL,
    to: 'await this.#fail(task, error);',
    tests: 'test/server.test.ts',
    pattern: '^9 the channels tell of the tasks of a pipelined request',
  },
  {
    name: 'the end of a task is not told',
    file: 'background.ts',
    from: END,
    to: '',
    tests: 'test/background.test.ts',
    pattern: '^9 the channels',
  },
  {
    name: 'a failure is not told',
    file: 'background.ts',
    from: ERROR,
    to: '',
    tests: 'test/background.test.ts',
    pattern: '^9 the channels',
  },
  {
    name: 'the index of a task is from 1',
    file: 'background.ts',
    from: 'index: this.#tasks.length,',
    to: 'index: this.#tasks.length + 1,',
    tests: 'test/background.test.ts',
    pattern: '^9 the channels',
  },
  {
    name: 'a drop is told without its reason',
    file: 'background.ts',
    from: 'channels.dropped.publish({ ...info, reason })',
    to: 'channels.dropped.publish(info)',
    tests: 'test/background.test.ts',
    pattern: '^9 each dropped task',
  },
  // 10: dependencies
  {
    name: 'the first input error is the only one',
    file: 'deps.ts',
    from: 'values[name] = got;',
    to: `values[name] = got;
      if (got === rejected) return rejected;`,
    tests: 'test/deps.test.ts',
    pattern: '^10 all input errors come in one 422',
  },
  {
    name: 'an input error that is met twice counts twice',
    file: 'deps.ts',
    from: '.set(JSON',
    to: '.set(Math.random() + JSON',
    tests: 'test/deps.test.ts',
    pattern: '^10 all input errors come in one 422',
  },
  {
    name: 'the input of an error is written whatever its depth',
    file: 'deps.ts',
    from: 'isShallow(input) ? input : null',
    to: 'input',
    tests: 'test/deps.test.ts',
    pattern: '^the input of an error has 100 levels at most',
  },
  {
    name: 'a call whose own inputs failed is called',
    file: 'deps.ts',
    from: 'if (values === rejected) return rejected;',
    to: '',
    tests: 'test/deps.test.ts',
    pattern: '^10 a call whose own inputs failed',
  },
  {
    name: 'a schema makes a parameter anew for each that declares it',
    file: 'deps.ts',
    from: 'once((scope) => validate(scope, [source, name]',
    to: '((scope) => validate(scope, [source, name]',
    tests: 'test/deps.test.ts',
    pattern: '^10 a dependency whose value is undefined',
  },
  {
    name: 'a schema makes a body anew for each that declares it',
    file: 'deps.ts',
    from: 'builtIn(once((scope) =>\n',
    to: 'builtIn(((scope) =>\n',
    tests: 'test/deps.test.ts',
    pattern: '^10 what a schema makes of a body',
  },
  {
    name: 'an error is not thrown in at the yield',
    file: 'deps.ts',
    from: 'generator.throw(thrown.error)',
    to: 'generator.next()',
    tests: 'test/deps.test.ts',
    pattern: '^10 an error is thrown in at the yield',
  },
  {
    name: 'the clean-ups run in the order of the dependencies',
    file: 'deps.ts',
    from: 'this.cleanUps.unshift(',
    to: 'this.cleanUps.push(',
    tests: 'test/deps.test.ts',
    pattern: '^10 .* provides what it yields',
  },
];
