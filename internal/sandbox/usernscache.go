package sandbox

import (
	"os"
	"sync"

	"github.com/tomblancdev/stromboli/internal/idmap"
)

// maxMaps bounds the namespaces that are kept, each a descriptor.
const maxMaps = 64

// mapCache keeps user namespaces that say how owners are mapped: making one
// takes some milliseconds, and ranges come back as sandboxes go.
type mapCache struct {
	mu   sync.Mutex
	kept map[[2]idmap.Pair]*os.File
}

// with calls do with the namespace of a pair of uids and one of gids.
func (c *mapCache) with(pairs [2]idmap.Pair, do func(ns *os.File) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	ns := c.kept[pairs]
	if ns == nil {
		var err error
		if ns, err = idmap.Namespace(pairs[0], pairs[1]); err != nil {
			return err
		}
		if len(c.kept) >= maxMaps {
			for key, old := range c.kept {
				_ = old.Close()
				delete(c.kept, key)
			}
		}
		if c.kept == nil {
			c.kept = make(map[[2]idmap.Pair]*os.File)
		}
		c.kept[pairs] = ns
	}
	return do(ns)
}
