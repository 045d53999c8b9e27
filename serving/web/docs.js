// Starts Swagger UI. A file of its own, because the page's policy runs no script that stands in the page.
"use strict";

window.SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  // Without this, Swagger UI would send every description to an outside validator.
  validatorUrl: null,
});
