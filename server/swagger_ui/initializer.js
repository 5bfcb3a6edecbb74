// The one script of ours on /docs: a file, so that the page needs no inline script and its policy can forbid them.
// The key, where one is asked for, is held in these functions' variables and in Swagger UI's: nowhere that lasts.
const form = document.getElementById("key-form");
const field = document.getElementById("key");
const refusal = document.getElementById("refusal");

function show(spec, key) {
  form.remove();
  const ui = SwaggerUIBundle({
    spec,
    dom_id: "#swagger-ui",
    deepLinking: true,
    displayRequestDuration: true,
    // Else the page sends its address to a server of swagger.io.
    validatorUrl: null,
    // Else the key would be kept on this computer.
    persistAuthorization: false,
    onComplete: () => {
      if (key) ui.preauthorizeApiKey("key", key);
    },
  });
}

async function enter(key) {
  let reply;
  try {
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    reply = await fetch("openapi.json", { headers, cache: "no-store", credentials: "omit" });
    if (reply.ok) return show(await reply.json(), key);
  } catch {
    refusal.textContent = reply ? "The answer could not be read." : "That could not be sent: is it the whole key?";
  }
  if (reply && !reply.ok) {
    const problem = await reply.json().catch(() => ({}));
    refusal.textContent = key || reply.status !== 401 ? (problem.detail ?? `The server answered ${reply.status}.`) : "";
    if (key && reply.status === 401) refusal.textContent = "The server does not know this key.";
  }
  form.hidden = false;
  field.focus();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  enter(field.value.trim());
});

enter("");
