package config

// Tracing is where traces of requests and runs go, by OTLP. See
// tracing.md.
type Tracing struct {
	// Enabled makes traces and sends them.
	Enabled bool `env:"ENABLED"`
	// Endpoint is the collector: host:port, spoken to by gRPC, or an http:// or
	// https:// URL, spoken to by HTTP (/v1/traces is added).
	Endpoint string `env:"ENDPOINT" envDefault:"localhost:4317"`
	// Protocol: grpc or http, where the endpoint's form doesn't say it. Default:
	// grpc for host:port, http for a URL.
	Protocol string `env:"PROTOCOL"`
	// ServiceName is the service.name of the spans.
	ServiceName string `env:"SERVICE_NAME" envDefault:"stromboli"`
	// Insecure speaks to a host:port without TLS. This machine's loopback always
	// is spoken to without.
	Insecure bool `env:"INSECURE"`
	// SampleRatio is the share of the traces that is recorded, from 0 to 1. A
	// request that comes with a traceparent is recorded if its caller records it.
	SampleRatio float64 `env:"SAMPLE_RATIO" envDefault:"1"`
	// Agents has the agents' CLIs add spans of their own to the traces of their
	// runs. Runs whose env has OTEL_ variables are left alone.
	Agents bool `env:"AGENTS" envDefault:"true"`
}
