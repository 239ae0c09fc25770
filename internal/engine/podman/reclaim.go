package podman

import (
	"context"
	"fmt"
	"os"
	"strings"
)

// RemoveTree removes a directory with all that is in it, as root of the user
// namespace of a rootless engine's user: files of that user's subordinate ids
// can't be removed by the user. The engine must be this process's own user's, and
// its command line be here. Symbolic links are not followed.
func (c *Client) RemoveTree(ctx context.Context, dir string) error {
	cmd := c.CLI(ctx, "unshare", "rm", "-rf", "--", dir)
	if c.service == nil { // by an address the command line takes no such orders
		cmd.Args = append(cmd.Args[:1:1], "unshare", "rm", "-rf", "--", dir)
		for _, kv := range os.Environ() {
			if !strings.HasPrefix(kv, "CONTAINER_HOST=") {
				cmd.Env = append(cmd.Env, kv)
			}
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("removing %s by podman unshare: %w: %.1000s", dir, err, out)
	}
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("removing %s by podman unshare: it is still there", dir)
	}
	return nil
}
