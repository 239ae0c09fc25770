package podman

import (
	"net/http"
	"testing"
)

func TestOperation(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ method, path, want string }{
		{http.MethodGet, "/containers/json", "list_containers"},
		{http.MethodGet, containerPath("json", "/json"), "inspect_container"},
		{http.MethodPost, containerPath("x", "/start"), "start_container"},
		{http.MethodPost, containerPath("x", "/wait"), "wait_for_container"},
		{http.MethodDelete, containerPath("start", ""), "remove_container"},
		{http.MethodHead, containerPath("x", "/archive"), "stat_in_container"},
		{http.MethodGet, containerPath("x", "/archive"), "read_from_container"},
		{http.MethodGet, imagePath("docker.io/library/x:1", "/json"), "inspect_image"},
		{http.MethodGet, imagePath("x", "/exists"), "look_for_image"},
		{http.MethodGet, compatInfo, "info"},
		{http.MethodGet, "/_ping", "ping"},
		{http.MethodGet, "/containers/x/unheard-of", "other"},
		{http.MethodGet, "/volumes/x/json", "other"},
	} {
		if got := operation(tt.method, tt.path); got != tt.want {
			t.Errorf("%s %s: %s, want %s", tt.method, tt.path, got, tt.want)
		}
	}
}
