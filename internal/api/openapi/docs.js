// No validator badge: it would ask a server elsewhere.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  validatorUrl: null,
  deepLinking: true,
  persistAuthorization: false,
});
