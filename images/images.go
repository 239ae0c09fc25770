// Package images carries the build files of the images that Stromboli makes,
// so that the installed program can build them without a clone. It holds
// text, knows no engine and refuses to be more than that.
package images

import _ "embed"

//go:embed agent/Containerfile
var agentContainerfile string

// Agent returns the Containerfile of the default agent image.
func Agent() string { return agentContainerfile }
