package stromboli

// TraceContext is the place in a trace that something has, in the two forms of
// the W3C's Trace Context. Zero: in none.
type TraceContext struct {
	// Parent is a traceparent: version, trace, span and flags.
	Parent string `json:"traceparent,omitempty"`
	// State is a tracestate, at most 512 bytes.
	State string `json:"tracestate,omitempty"`
}
