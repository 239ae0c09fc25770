// Package openapi holds the documents of the HTTP API: openapi.json and
// openapi.yaml (OpenAPI 3.1), swagger.json (Swagger 2.0), and the page that shows
// them. They are made from the routes and types of package api.
package openapi

import "embed"

// Files are the documents by name.
//
//go:embed openapi.json openapi.yaml swagger.json docs.html docs.js
var Files embed.FS
