/** What every server does for `POST /order?item=…`: three small tasks after the response, each counted. */
export const TASKS = ['주문 확인', '재고 차감', '알림 발송'] as const;

/** What `GET /counts` answers: the orders that were answered, and the tasks that were executed. */
export const counts = { answered: 0, executed: 0 };
let last = '';

/** A task: keeps its line, so that the line has to be made, and counts. */
export function record(line: string): void {
  last = line;
  counts.executed += 1;
}

/** What the last task was given. */
export const lastLine = (): string => last;

/** What the handler of an order returns. */
export function order(item: string): { message: string } {
  counts.answered += 1;
  return { message: `주문 완료: ${item}` };
}

/** The tasks by hand: in order, each awaited where it is async, and no error leaves. */
export async function runTasks(item: string): Promise<void> {
  for (const task of TASKS) {
    try {
      const pending: unknown = record(`${task}: ${item}`);
      if (typeof (pending as PromiseLike<unknown> | undefined)?.then === 'function') {
        await pending;
      }
    } catch (error) {
      console.error(error);
    }
  }
}

/** Where a server listens: `PORT`, on the loopback interface. */
export const address = { host: '127.0.0.1', port: Number(process.env.PORT ?? 9000) };
