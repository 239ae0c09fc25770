// Command stromboli-shim is the first process of every sandbox. It is a static
// binary of its own, mounted into images that know nothing of it.
package main

import (
	"os"

	"github.com/tomblancdev/stromboli/internal/shim"
)

func main() { os.Exit(shim.Main(os.Args)) }
