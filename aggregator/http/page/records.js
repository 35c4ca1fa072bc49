// Objects that are looked up by a name somebody else chose: `constructor` is a good name for a node.

/** An object of `entries` that has nothing but them: no `constructor`, no `toString`. */
export function record(entries) {
  const made = Object.create(null);
  for (const [name, value] of entries) made[name] = value;
  return made;
}

/** JSON, each object of it a record. */
export const parse = (text) =>
  JSON.parse(text, (_, value) => (value !== null && typeof value === "object" && !Array.isArray(value) ? record(Object.entries(value)) : value));
