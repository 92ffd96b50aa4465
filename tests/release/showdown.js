// Texts (a JSON list on stdin) as MLflow's page makes HTML of them: with its own Showdown, out of the bundle named by the argument.
const fs = require("fs");
(0, eval)(fs.readFileSync(process.argv[2], "utf8"));
for (const chunk of globalThis.webpackChunk_mlflow_mlflow)
  for (const part of Object.values(chunk[1]))
    if (String(part).includes("ghMentionsLink")) {
      const module = { exports: {} };
      part.call(module.exports, module, module.exports, () => ({}));
      const converter = new module.exports.Converter();
      converter.setFlavor("github");
      console.log(JSON.stringify(JSON.parse(fs.readFileSync(0, "utf8")).map((text) => converter.makeHtml(text))));
    }
