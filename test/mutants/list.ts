/**
 * The repository with one defect each, which only a unit test can show: one of `tests`, whose title matches `pattern`,
 * fails. The defects that the suite finds are those of test/faults.
 */

export interface Change {
  /** What the defect does, as a statement. */
  readonly name: string;
  readonly file: 'background.ts' | 'deps.ts' | 'server.ts';
  /** Occurs once in `file`, and is replaced by `to`. */
  readonly from: string;
  readonly to: string;
}
export interface UnitMutant extends Change {
  readonly tests: string;
  /** For `--test-name-pattern`. */
  readonly pattern: string;
}

const WAIT_FOR_TASKS = 'await new Promise<void>((resolve) => runTasks(scope, res, resolve));';
const CALL = 'task.scope.runInAsyncScope(task.fn, undefined, ...task.args)';
const WAIT = 'if (isThenable(result)) await task.scope.runInAsyncScope(Promise.resolve, Promise, result);';
const FAIL = 'await task.scope.runInAsyncScope(this.#fail, this, task, error);';
const START = 'task.scope.runInAsyncScope(() => channels.start.publish(this.#info(task)));';
const END = 'task.scope.runInAsyncScope(() => channels.end.publish(this.#info(task)));';
const ERROR = 'channels.error.publish({ ...info, error });';
const DROPPED = 'for (const info of dropped) channels.dropped.publish({ ...info, reason });';

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
