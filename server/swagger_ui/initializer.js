// The one script of ours on /docs: a file, so that the page needs no inline script and its policy can forbid them.
window.onload = () => {
  SwaggerUIBundle({
    url: "openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    displayRequestDuration: true,
    // Else the page sends its address to a server of swagger.io.
    validatorUrl: null,
  });
};
