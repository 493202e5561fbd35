/** Draws the chart of a result: a bar for each server, as long as its share of raw's requests a second. */
import { lines, OURS, type Result } from './result.ts';

const WIDTH = 760;
const LEFT = 270; // the names
const RIGHT = 130; // the figures
const TOP = 44;
const STEP = 28;
const BAR = 16;

const escaped = (text: string): string =>
  text.replace(/[&<>"]/g, (character) => `&#${character.codePointAt(0)};`);

function kindOf(name: string): 'ours' | 'raw' | 'other' {
  if (name.startsWith(OURS)) {
    return 'ours';
  }
  return name.startsWith('raw') ? 'raw' : 'other';
}

export function chart(result: Result): string {
  const rows = lines(result.servers);
  const longest = Math.max(1, ...rows.map(({ ratio }) => ratio.max));
  const x = (share: number): number =>
    Math.round((LEFT + (share / longest) * (WIDTH - LEFT - RIGHT)) * 10) / 10;
  const bottom = TOP + rows.length * STEP;
  const ticks = [0, 0.25, 0.5, 0.75, 1].map(
    (share) => `
  <line class="grid" x1="${x(share)}" y1="${TOP - 6}" x2="${x(share)}" y2="${bottom}"/>
  <text class="tick" x="${x(share)}" y="${bottom + 16}">${share}</text>`,
  );
  const bars = rows.map(({ name, ratio: { median, min, max }, rate }, at) => {
    const middle = TOP + at * STEP + STEP / 2;
    const figures = `${median.toFixed(2)} · ${Math.round(rate.median).toLocaleString('en-US')}/s`;
    return `
  <text class="name" x="${LEFT - 8}" y="${middle + 4}">${escaped(name)}</text>
  <rect class="${kindOf(name)}" x="${LEFT}" y="${middle - BAR / 2}" width="${(x(median) - LEFT).toFixed(1)}" height="${BAR}"/>
  <line class="range" x1="${x(min)}" y1="${middle}" x2="${x(max)}" y2="${middle}"/>
  <text class="figures" x="${WIDTH - RIGHT + 10}" y="${middle + 4}">${figures}</text>`;
  });
  const { machine, date, command } = result;
  const note = escaped(`${machine.cpu}, Node ${machine.node}, ${date}: ${command}`);
  const [width, height] = [WIDTH, bottom + 48];
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">
  <title>Requests a second, as a share of raw node:http's</title>
  <style>
    text { font: 13px system-ui, sans-serif; fill: #24292f }
    .name { text-anchor: end } .tick { text-anchor: middle; font-size: 11px } .note { font-size: 11px }
    .grid { stroke: #d0d7de } .range { stroke: #24292f; stroke-width: 2 }
    .raw { fill: #8c959f } .ours { fill: #1f6feb } .other { fill: #b6c6e3 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 } .grid { stroke: #30363d } .range { stroke: #e6edf3 } .other { fill: #44597d }
    }
  </style>
  <text x="8" y="20">Requests a second, as a share of raw node:http's (the line: the range over the rounds)</text>
  ${[...ticks, ...bars].join('').trim()}
  <text class="note" x="8" y="${bottom + 38}">${note}</text>
</svg>
`;
}
