/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Everything lies in one directory of this run, which goes with it; the daemon dies with this process
 * (PR_SET_PDEATHSIG). Memory is never asked of the daemon here: the kernel tells, so that what the
 * daemon says can be held against it. One thread.
 */
#include "bench-host.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <dirent.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/message.h"

#define START_MS   60000
#define MAX_MEMFDS 4096
#define COPY_BYTES (1U << 20)

atomic_bool bench_host_stopped;

static void stop(int signal_number)
{
	atomic_store(&bench_host_stopped, true);
}

/* --- directory and program --- */

static bool is_program(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0;
}

static bool find_beside(char ret_path[4096])
{
	static const char *const places[] = { "dcmemd", "../../daemon/dcmemd", "../sbin/dcmemd",
					      "../libexec/dcmemd" };
	char self[2048];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	char *slash;

	if (n <= 0)
		return false;
	self[n] = '\0';
	slash = strrchr(self, '/');
	slash[1] = '\0';
	for (unsigned i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		snprintf(ret_path, 4096, "%s%s", self, places[i]);
		if (is_program(ret_path))
			return true;
	}
	return false;
}

static bool find_in_path(char ret_path[4096])
{
	const char *path = getenv("PATH");

	while (path && *path) {
		size_t n = strcspn(path, ":");

		snprintf(ret_path, 4096, "%.*s/dcmemd", (int)n, path);
		if (n && is_program(ret_path))
			return true;
		path += n + (path[n] == ':');
	}
	return false;
}

int bench_host_init(struct bench_host *host, const char *where, const char *dcmemd)
{
	struct sigaction action = { .sa_handler = stop };
	const char *base = where ? where : getenv("TMPDIR");

	*host = (struct bench_host){ .options.size = sizeof(host->options) };
	if (dcmemd)
		snprintf(host->program, sizeof(host->program), "%s", dcmemd);
	if (dcmemd && !is_program(dcmemd))
		return message_set(-ENOENT, "%s: no program", dcmemd);
	if (!dcmemd && !find_beside(host->program) && !find_in_path(host->program))
		return message_set(-ENOENT, "dcmemd is neither beside this program nor in PATH: "
					    "say where it is by --dcmemd");
	snprintf(host->directory, sizeof(host->directory), "%s/dcmem-bench-XXXXXX",
		 base && *base ? base : "/var/tmp");
	if (!mkdtemp(host->directory)) {
		int r = -errno;

		host->directory[0] = '\0';
		return message_set(r, "cannot make a directory in %s: %s",
				   base && *base ? base : "/var/tmp", strerror(-r));
	}
	if ((size_t)snprintf(host->socket, sizeof(host->socket), "%s/socket", host->directory) >=
	    sizeof(host->socket)) {
		bench_host_deinit(host);
		return message_set(-ENAMETOOLONG, "%s: too long for the path of a socket", base);
	}
	host->options.socket_path = host->socket;
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *walk)
{
	return remove(path);
}

void bench_host_deinit(struct bench_host *host)
{
	bench_host_stop(host);
	if (host->directory[0])
		(void)nftw(host->directory, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	host->directory[0] = '\0';
}

void bench_host_path(const struct bench_host *host, const char *name, char ret_path[1100])
{
	snprintf(ret_path, 1100, "%s/%s", host->directory, name);
}

/* --- the daemon --- */

static int write_config(uint64_t budget_bytes, const char *objective, const char *path)
{
	FILE *file = fopen(path, "we");

	if (!file)
		return message_set(-errno, "cannot write %s: %s", path, strerror(errno));
	fprintf(file, "{\"budget\": %llu, \"objective\": \"%s\", \"model_dirs\": [\"/\"]}\n",
		(unsigned long long)budget_bytes, objective);
	return fclose(file) == 0 ? 0 : message_set(-EIO, "cannot write %s", path);
}

static void exec_daemon(const struct bench_host *host, const char *config, const char *model,
			int ready_fd, const char *log)
{
	char ready[16], loaded[4200];
	const char *arguments[12] = { host->program, "--config", config, "--socket", host->socket,
				      "--ready-fd", ready };
	int fd = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0666), none = open("/dev/null", O_RDONLY);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setpgid(0, 0); /* Ctrl-C is ours: the daemon ends when we end it */
	snprintf(ready, sizeof(ready), "%d", ready_fd);
	if (model) {
		snprintf(loaded, sizeof(loaded), "%s=m", model);
		arguments[7] = "--model";
		arguments[8] = loaded;
	}
	if (fd < 0 || none < 0 || dup2(none, 0) < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0)
		_exit(126);
	execv(host->program, (char *const *)(uintptr_t)arguments);
	_exit(127);
}

static int start_failed(struct bench_host *host, const char *log)
{
	char text[600] = "", *line;
	FILE *file = fopen(log, "re");
	size_t n = file ? fread(text, 1, sizeof(text) - 1, file) : 0;

	text[n] = '\0';
	if (file)
		fclose(file);
	line = strchr(text, '\n');
	if (line)
		*line = '\0';
	bench_host_stop(host);
	return message_set(-EIO, "%s did not start%s%s", host->program, *text ? ": " : "", text);
}

int bench_host_start(struct bench_host *host, uint64_t budget_bytes, const char *objective,
		     const char *model)
{
	char config[1100], log[1100], word[5];
	struct pollfd wait;
	int fds[2], r, got;

	bench_host_path(host, "dcmemd.json", config);
	bench_host_path(host, "log", log);
	r = write_config(budget_bytes, objective, config);
	if (r)
		return r;
	if (pipe(fds) != 0)
		return message_set(-errno, "cannot make a pipe: %s", strerror(errno));
	fcntl(fds[0], F_SETFD, FD_CLOEXEC);
	host->daemon = fork();
	if (host->daemon == 0)
		exec_daemon(host, config, model, fds[1], log);
	close(fds[1]);
	wait = (struct pollfd){ .fd = fds[0], .events = POLLIN };
	if (host->daemon < 0)
		host->daemon = 0;
	do
		got = host->daemon ? poll(&wait, 1, START_MS) : 0;
	while (got < 0 && errno == EINTR && !atomic_load(&bench_host_stopped));
	r = got == 1 && read(fds[0], word, sizeof(word)) == sizeof(word) ? 0 : -EIO;
	close(fds[0]);
	return r ? start_failed(host, log) : 0;
}

void bench_host_stop(struct bench_host *host)
{
	if (host->daemon <= 0)
		return;
	kill(host->daemon, SIGTERM);
	while (waitpid(host->daemon, NULL, 0) < 0 && errno == EINTR)
		;
	host->daemon = 0;
}

int bench_host_request(const struct bench_host *host, json_t *request, json_t **ret_reply)
{
	char *text = request ? json_dumps(request, JSON_COMPACT) : NULL, *reply = NULL;
	struct dcmem_conn *conn = NULL;
	json_t *json;
	int r = text ? dcmem_connect(&host->options, &conn) : -ENOMEM;

	if (!r)
		r = dcmem_request(conn, text, &reply);
	json_decref(request);
	free(text);
	json = r ? NULL : json_loads(reply, 0, NULL);
	if (r)
		message_set(r, "dcmemd: %s", *dcmem_error() ? dcmem_error() : dcmem_strerror(r));
	else if (!json)
		r = message_set(DCMEM_E_PROTOCOL, "dcmemd: a reply that is no JSON");
	dcmem_free(reply);
	dcmem_disconnect(conn);
	if (r)
		return r;
	if (ret_reply)
		*ret_reply = json;
	else
		json_decref(json);
	return 0;
}

uint64_t bench_host_counter(const struct bench_host *host, const char *name)
{
	json_t *reply = NULL;
	uint64_t value = 0;

	if (bench_host_request(host, json_pack("{s:s}", "cmd", "stats"), &reply) == 0)
		value = (uint64_t)json_integer_value(json_object_get(reply, name));
	json_decref(reply);
	return value;
}

/* --- files --- */

static int open_file(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	return fd >= 0 ? fd : message_set(-errno, "%s: %s", path, strerror(errno));
}

int bench_cache_drop(const char *path)
{
	int fd = open_file(path), r;

	if (fd < 0)
		return fd;
	/* Pages that are not on disk yet cannot be dropped. */
	r = fdatasync(fd) == 0 ? -posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) : -errno;
	close(fd);
	return r ? message_set(r, "%s: %s", path, strerror(-r)) : 0;
}

uint64_t bench_cache_bytes(const char *path)
{
	uint64_t n_bytes = bench_file_bytes(path), n = 0;
	size_t page = (size_t)sysconf(_SC_PAGESIZE), n_pages = (n_bytes + page - 1) / page;
	_cleanup_(cleanup_memory) uint8_t *resident = memory_alloc(n_pages + 1);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	void *map = fd >= 0 && n_bytes ? mmap(NULL, n_bytes, PROT_READ, MAP_SHARED, fd, 0) :
					 MAP_FAILED;

	if (resident && map != MAP_FAILED && mincore(map, n_bytes, resident) == 0)
		for (size_t i = 0; i < n_pages; i++)
			n += resident[i] & 1 ? page : 0;
	if (map != MAP_FAILED)
		munmap(map, n_bytes);
	close_fd(fd);
	return n;
}

int bench_cache_warm(const char *path)
{
	_cleanup_(cleanup_memory) uint8_t *buffer = memory_alloc(COPY_BYTES);
	int fd = open_file(path);
	ssize_t n;

	if (fd < 0 || !buffer) {
		close_fd(fd);
		return fd < 0 ? fd : -ENOMEM;
	}
	do
		n = read(fd, buffer, COPY_BYTES);
	while (n > 0 || (n < 0 && errno == EINTR));
	if (n < 0)
		n = message_set(-errno, "%s: %s", path, strerror(errno));
	close(fd);
	return (int)n;
}

uint64_t bench_file_bytes(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 ? (uint64_t)st.st_size : 0;
}

/* --- memory --- */

void bench_memory_add(struct bench_memory_use *use, pid_t pid)
{
	char path[64], line[256];
	unsigned long long kib;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%ld/smaps_rollup", (long)pid);
	file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "Pss: %llu kB", &kib) == 1)
			use->pss += kib << 10;
		else if (sscanf(line, "Pss_Anon: %llu kB", &kib) == 1)
			use->anon += kib << 10;
	}
	if (file)
		fclose(file);
}

uint64_t bench_memory_memfds(pid_t pid)
{
	static ino_t seen[MAX_MEMFDS];
	size_t n_seen = 0;
	uint64_t n_bytes = 0;
	char path[64], link[600], target[64];
	struct dirent *entry;
	DIR *fds;

	snprintf(path, sizeof(path), "/proc/%ld/fd", (long)pid);
	fds = opendir(path);
	while (fds && (entry = readdir(fds))) {
		struct stat st;
		bool known = false;
		ssize_t n;

		snprintf(link, sizeof(link), "%s/%s", path, entry->d_name);
		n = readlink(link, target, sizeof(target) - 1);
		if (n <= 0)
			continue;
		target[n] = '\0';
		if (strncmp(target, "/memfd:", 7) != 0 || stat(link, &st) != 0)
			continue;
		for (size_t i = 0; i < n_seen && !known; i++)
			known = seen[i] == st.st_ino;
		if (!known && n_seen < MAX_MEMFDS) {
			seen[n_seen++] = st.st_ino;
			n_bytes += (uint64_t)st.st_blocks * 512;
		}
	}
	if (fds)
		closedir(fds);
	return n_bytes;
}
