// Runs a program's cases and says what became of each, as one line of JSON.

export const words = JSON.parse(process.argv[2]); // prompt, image (base64 of a PNG)

export async function run(cases) {
  for (const [name, action] of Object.entries(cases)) {
    const said = { case: name };
    try {
      said.value = await action();
    } catch (error) {
      said.error = error.constructor.name;
      said.status = Number.isInteger(error.status) ? error.status : null;
      said.message = String(error.message);
    }
    // As Python writes it: the reader looks for this beginning.
    console.log(JSON.stringify(said));
  }
}
