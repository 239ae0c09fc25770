package podman

import (
	"net/http"
	"strings"
)

// operation names a call without what it is of: ids and references would make
// a series of metrics for each.
func operation(method, path string) string {
	switch path {
	case "/containers/json":
		return "list_containers"
	case "/containers/create":
		return "create_container"
	case "/containers/stats":
		return "container_stats"
	case "/images/json":
		return "list_images"
	case "/images/load":
		return "load_image"
	case "/images/import":
		return "import_image"
	case "/images/pull":
		return "pull_image"
	case "/images/search":
		return "search_images"
	case "/events":
		return "events"
	case "/info", compatInfo:
		return "info"
	case "/_ping":
		return "ping"
	}
	noun := "container"
	if strings.HasPrefix(path, "/images/") {
		noun = "image"
	} else if !strings.HasPrefix(path, "/containers/") {
		return "other"
	}
	if method == http.MethodDelete {
		return "remove_" + noun
	}
	switch path[strings.LastIndexByte(path, '/'):] {
	case "/json":
		return "inspect_" + noun
	case "/exists":
		return "look_for_" + noun
	case "/start":
		return "start_" + noun
	case "/wait":
		return "wait_for_" + noun
	case "/kill":
		return "kill_" + noun
	case "/stop":
		return "stop_" + noun
	case "/archive":
		if method == http.MethodHead {
			return "stat_in_" + noun
		}
		return "read_from_" + noun
	}
	return "other"
}
