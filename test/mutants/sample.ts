/** Some of `all`, drawn by chance: the same for the same `seed`, and in the order of `all`. */
export function drawSample<T>(all: readonly T[], size: number, seed: number): T[] {
  const random = mulberry32(seed);
  const places = all.map((_, place) => place);
  for (let last = places.length - 1; last > 0; last -= 1) {
    const other = Math.floor(random() * (last + 1));
    [places[last], places[other]] = [places[other]!, places[last]!];
  }
  const drawn = new Set(places.slice(0, size));
  return all.filter((_, place) => drawn.has(place));
}

/** A small generator of numbers from 0 to 1; `Math.random` takes no seed. */
function mulberry32(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
