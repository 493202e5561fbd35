/** The work that every server does for `POST /order?item=…`: three small tasks after the response, each counted. */
export const TASKS = ['주문 확인', '재고 차감', '알림 발송'] as const;

export const counts = { answered: 0, executed: 0 };
let last = '';

/** A task: keeps its line, so that the line has to be made, and counts. */
export function record(line: string): void {
  last = line;
  counts.executed += 1;
}

/** What the last task was given. */
export const lastLine = (): string => last;

/** Where a server listens: `PORT`, on the loopback interface. */
export const address = { host: '127.0.0.1', port: Number(process.env['PORT'] ?? 9000) };
