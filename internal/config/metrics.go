package config

import (
	"fmt"
	"net"
	"strconv"
)

// Metrics is what the server tells Prometheus.
type Metrics struct {
	// Enabled serves metrics: at /metrics of the API, to credentials with the
	// scope admin while auth is on, and at Address.
	Enabled bool `env:"ENABLED" envDefault:"true"`
	// Address is host:port of a listener of their own, at which whoever reaches
	// it may read /metrics without credentials; port 0 is any free one. A port
	// that is taken doesn't stop the server.
	Address string `env:"ADDRESS" envDefault:"127.0.0.1:9090"`
}

// Public reports whether others than this machine may reach Address.
func (m Metrics) Public() bool { return !loopback(hostOf(m.Address)) }

func (m Metrics) validate() error {
	_, port, err := net.SplitHostPort(m.Address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("STROMBOLI_METRICS_ADDRESS: %q is not host:port", m.Address)
	}
	return nil
}
