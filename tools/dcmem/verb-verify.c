/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `dcmem verify`: every page is read, decoded and checked against both hashes, every blob and every
 * whole file against its own; with --against, byte by byte against a directory.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "json-out.h"
#include "compare.h"
#include "progress.h"
#include "model/padding.h"
#include "model/restore.h"
#include "table.h"
#include "verb.h"

#define COMPARE_BYTES (1U << 20)

struct verify {
	const char *against; /* or NULL */
	bool against_file;   /* it is a file, not a directory */
	uint8_t *scratch;
	struct progress progress;
	uint64_t done, total;
	int fd; /* of --against, or -1 */
	bool lossy; /* bytes cannot be compared: tensors are, one by one */
	struct compare_result compared;
};

static int help(void)
{
	printf("Usage: dcmem verify IN [--against SRC] [--json] [--quiet]\n\n"
	       "Reads and decodes every page of a container and checks all hashes: of the index, of\n"
	       "stored and decoded pages, of sidecar files, and of each whole source file.\n\n"
	       "  --against SRC  compare every byte with this model directory or file as well; tensors\n"
	       "                 that were quantized: how far their weights are from those of SRC\n"
	       "  --json         one JSON document instead of a line\n"
	       "  --quiet        no line, no progress bar\n\n"
	       "Example: may the original be deleted?\n\n"
	       "  dcmem verify my-model.dcmem --against ./my-model && rm -r ./my-model\n\n"
	       "Exit codes: 0 all right, 1 failed, 2 wrong usage, 3 damaged, or different from SRC.\n");
	return verb_flush("verify");
}

static int check_bytes(void *data, const void *bytes, size_t n_bytes, uint64_t offset)
{
	struct verify *verify = data;

	for (size_t at = 0; verify->fd >= 0 && at < n_bytes; at += COMPARE_BYTES) {
		size_t n = min_u64(COMPARE_BYTES, n_bytes - at);
		int r = io_read_at(verify->fd, verify->scratch, n, offset + at);

		if (r && r != -ENODATA)
			return message_set(r, "cannot read it at byte %llu: %s",
					   (unsigned long long)(offset + at), strerror(-r));
		if (r || memcmp(verify->scratch, (const uint8_t *)bytes + at, n) != 0)
			return message_set(INDEX_E_CORRUPT,
					   "differs from the container within %zu bytes of byte %llu", n,
					   (unsigned long long)(offset + at));
	}
	verify->done += n_bytes;
	progress_update(&verify->progress, verify->done, verify->total);
	return 0;
}

static int open_against(const struct verify *verify, const char *name, uint64_t n_bytes,
			int *ret_fd)
{
	_cleanup_(cleanup_memory) char *path = NULL;
	_cleanup_(cleanup_fd) int fd = -1;
	size_t n = strlen(verify->against) + strlen(name) + 2;
	struct stat st;

	path = memory_alloc(n);
	if (!path)
		return message_set(-ENOMEM, "not enough memory");
	if (verify->against_file)
		snprintf(path, n, "%s", verify->against);
	else
		snprintf(path, n, "%s/%s", verify->against, name);
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0 && errno == ENOENT)
		return message_set(INDEX_E_CORRUPT, "%s: is in the container, but not there", path);
	if (fd < 0 || fstat(fd, &st) < 0)
		return message_set(-errno, "%s: cannot open: %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != n_bytes)
		return message_set(INDEX_E_CORRUPT, "%s: is not a file of %llu bytes", path,
				   (unsigned long long)n_bytes);
	*ret_fd = take_fd(&fd);
	return 0;
}

static int verify_file(struct verify *verify, struct restore *restore, const struct index *index,
		       uint64_t i)
{
	const struct restore_sink sink = { .write = check_bytes, .data = verify };
	_cleanup_(cleanup_fd) int fd = -1;
	const struct container_file *file;
	const char *name;
	int r = index_file(index, i, &file);

	if (!r)
		r = index_file_name(index, file, &name);
	if (!r && verify->against && !verify->lossy)
		r = open_against(verify, name, file->file_bytes, &fd);
	verify->fd = fd;
	return r ? r : restore_file(restore, i, &sink);
}

static int verify_all(struct verify *verify, const struct container *container)
{
	struct restore *restore = NULL;
	int r = restore_new(&restore, container, restore_cpu_count());

	for (uint64_t i = 0; !r && i < container->index.n_files; i++)
		r = verify_file(verify, restore, &container->index, i);
	if (!r)
		r = restore_check_rest(restore);
	if (!r)
		r = padding_check(container);
	restore = restore_free(restore);
	return r;
}

static bool has_lossy(const struct container *container)
{
	for (uint64_t id = 0; id < container->index.n_tensors; id++) {
		const struct container_tensor *tensor;

		if (index_tensor(&container->index, id, &tensor) == 0 &&
		    tensor->flags & CONTAINER_TENSOR_QUANTIZED)
			return true;
	}
	return false;
}

static void report_compared(const struct compare_result *compared, struct json_out *out)
{
	if (!out) {
		printf("%llu tensors byte for byte as there, %llu quantized: relative error %.4f, at most %.4f "
		       "(%s)\n", (unsigned long long)compared->n_alike,
		       (unsigned long long)compared->n_lossy, compared->error, compared->worst,
		       compared->worst_name);
		return;
	}
	json_out_u64(out, "n_alike", compared->n_alike);
	json_out_u64(out, "n_quantized", compared->n_lossy);
	json_out_double(out, "relative_error", compared->error);
	json_out_double(out, "worst_relative_error", compared->worst);
	json_out_string(out, "worst_tensor", compared->worst_name);
}

static void report(const struct verify *verify, const struct container *container,
		   const char *path, bool json)
{
	struct json_out out;
	char text[24];

	if (!json) {
		printf("%s: %llu tensors, %llu pages, %llu files, %s: every hash right%s%s\n", path,
		       (unsigned long long)container->index.n_tensors,
		       (unsigned long long)container->index.n_pages,
		       (unsigned long long)container->index.n_files,
		       table_bytes(verify->done, text),
		       verify->against && !verify->lossy ? ", every byte as in " : "",
		       verify->against && !verify->lossy ? verify->against : "");
		if (verify->lossy)
			report_compared(&verify->compared, NULL);
		return;
	}
	json_out_init(&out, stdout);
	json_out_object(&out, NULL);
	json_out_string(&out, "path", path);
	json_out_bool(&out, "ok", true);
	json_out_u64(&out, "n_tensors", container->index.n_tensors);
	json_out_u64(&out, "n_pages", container->index.n_pages);
	json_out_u64(&out, "n_files", container->index.n_files);
	json_out_u64(&out, "n_bytes", verify->done);
	if (verify->lossy)
		report_compared(&verify->compared, &out);
	json_out_end(&out, '}');
}

static int run(const char *path, const char *against, bool json, bool quiet)
{
	_cleanup_(cleanup_memory) uint8_t *scratch = memory_alloc(COMPARE_BYTES);
	struct verify verify = { .against = against, .scratch = scratch, .fd = -1 };
	struct container container;
	struct stat st;
	int r;

	if (!scratch)
		return message_set(-ENOMEM, "not enough memory");
	if (against && stat(against, &st) < 0)
		return message_set(-errno, "%s: %s", against, strerror(errno));
	verify.against_file = against && !S_ISDIR(st.st_mode);
	r = container_open(&container, path);
	if (r)
		return r;
	verify.lossy = against && has_lossy(&container);
	if (verify.against_file && container.index.n_files != 1) {
		container_close(&container);
		return message_set(-EINVAL, "%s: is one file, the container has several", against);
	}
	for (uint64_t i = 0; i < container.index.n_files; i++) {
		const struct container_file *file;

		if (index_file(&container.index, i, &file) == 0)
			verify.total += file->file_bytes;
	}
	progress_init(&verify.progress, "verifying", !quiet);
	r = verify_all(&verify, &container);
	progress_end(&verify.progress);
	if (!r && verify.lossy)
		r = compare_quantized(&container, path, against, &verify.compared);
	if (!r && (json || !quiet))
		report(&verify, &container, path, json);
	container_close(&container);
	return r ? message_prefix(r, "%s", path) : 0;
}

int verb_verify(int argc, char **argv)
{
	static const struct option long_options[] = {
		{ "against", required_argument, NULL, 'a' },
		{ "json", no_argument, NULL, 'J' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	const char *against = NULL;
	bool json = false, quiet = false;
	int c, r;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "h", long_options, NULL)) != -1) {
		if (c == 'h')
			return help();
		if (c == '?')
			return verb_usage("verify", "unknown option, or one without its value: %s",
					  argv[optind - 1]);
		if (c == 'a')
			against = optarg;
		json |= c == 'J';
		quiet |= c == 'q';
	}
	if (argc - optind != 1)
		return verb_usage("verify", "needs one IN");
	r = run(argv[optind], against, json, quiet);
	return r ? verb_failure("verify", r, message_get()) : verb_flush("verify");
}
