/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Weights of a Hugging Face directory: the bytes of its *.safetensors files, read into private
 * memory or mapped shared. Refuses headers whose tensors leave the file or contradict their shape.
 */
#include "weights.h"

#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "dcmem/dcmem.h"
#include "util.h"

#define MAX_FILES	 1024
#define MAX_HEADER_BYTES 100000000

struct file {
	uint8_t *data;
	size_t n_bytes;
	bool mapped;
	json_t *header;
};

struct files {
	struct weights head;
	char *directory;
	size_t n_files;
	struct file files[MAX_FILES];
};

static int read_whole(int fd, void *data, size_t n_bytes)
{
	size_t done = 0;

	while (done < n_bytes) {
		ssize_t n = read(fd, (uint8_t *)data + done, n_bytes - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -ENODATA;
		done += (size_t)n;
	}
	return 0;
}

static int open_file(const char *directory, const char *name, int *ret_fd, size_t *ret_n_bytes)
{
	char path[PATH_MAX];
	struct stat status;
	int fd;

	if (snprintf(path, sizeof(path), "%s/%s", directory, name) >= (int)sizeof(path))
		return error_set(-ENAMETOOLONG, "%s: path too long", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return error_set(-errno, "%s: %s", path, strerror(errno));
	if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
		(void)close(fd);
		return error_set(-EINVAL, "%s is not a file", path);
	}
	*ret_fd = fd;
	*ret_n_bytes = (size_t)status.st_size;
	return 0;
}

static int load_file(struct files *files, const char *name, bool map)
{
	struct file *file = &files->files[files->n_files];
	uint64_t header_bytes;
	int fd, r;

	r = open_file(files->directory, name, &fd, &file->n_bytes);
	if (r != 0)
		return r;
	if (file->n_bytes < 8) {
		(void)close(fd);
		return error_set(-EINVAL, "%s is too short", name);
	}
	if (map) {
		file->data = mmap(NULL, file->n_bytes, PROT_READ, MAP_SHARED, fd, 0);
		r = file->data == MAP_FAILED ? -errno : 0;
	} else {
		file->data = array_new(file->n_bytes, 1);
		r = file->data ? read_whole(fd, file->data, file->n_bytes) : -ENOMEM;
	}
	(void)close(fd);
	if (r != 0 && (map || !file->data))
		return error_set(r, "%s: %s", name, strerror(-r));
	file->mapped = map;
	files->n_files++;
	if (r != 0)
		return error_set(r, "%s: %s", name, strerror(-r));
	memcpy(&header_bytes, file->data, 8);
	if (header_bytes > MAX_HEADER_BYTES || header_bytes > file->n_bytes - 8)
		return error_set(-EINVAL, "%s: the header does not fit the file", name);
	file->header = json_loadb((const char *)file->data + 8, header_bytes, 0, NULL);
	if (!json_is_object(file->header))
		return error_set(-EINVAL, "%s: the header is not a JSON object", name);
	return 0;
}

static uint32_t dtype_of(const char *name)
{
	for (uint32_t dtype = DCMEM_BOOL; name && dtype <= DCMEM_F64; dtype++) {
		static const char *const names[] = {
			[DCMEM_BOOL] = "BOOL", [DCMEM_U8] = "U8",	  [DCMEM_I8] = "I8",
			[DCMEM_F16] = "F16",   [DCMEM_BF16] = "BF16", [DCMEM_F32] = "F32",
			[DCMEM_F64] = NULL};

		if (names[dtype] && strcmp(names[dtype], name) == 0)
			return dtype;
	}
	return 0;
}

static uint64_t element_bytes(uint32_t dtype)
{
	return dtype == DCMEM_F32 ? 4 : dtype == DCMEM_F16 || dtype == DCMEM_BF16 ? 2 : 1;
}

static int describe(const struct files *files, size_t index, const char *name, const json_t *item,
		    struct weight *ret_weight)
{
	const struct file *file = &files->files[index];
	const json_t *shape = json_object_get(item, "shape");
	const json_t *offsets = json_object_get(item, "data_offsets");
	uint64_t n = 1, n_cols = 1, start, end, space, head;
	struct weight weight = {0};

	weight.dtype = dtype_of(json_string_value(json_object_get(item, "dtype")));
	if (weight.dtype == 0)
		return error_set(-EINVAL, "%s: a dtype that this program does not read", name);
	memcpy(&head, file->data, 8);
	space = file->n_bytes - 8 - head;
	weight.n_dims = (uint32_t)json_array_size(shape);
	for (size_t i = 0; i < json_array_size(shape); i++) {
		json_int_t dim = json_integer_value(json_array_get(shape, i));

		if (dim < 0 || __builtin_mul_overflow(n, (uint64_t)dim, &n))
			return error_set(-EINVAL, "%s: bad shape", name);
		n_cols = (uint64_t)dim;
	}
	start = (uint64_t)json_integer_value(json_array_get(offsets, 0));
	end = (uint64_t)json_integer_value(json_array_get(offsets, 1));
	if (end > space || start > end || n > space ||
	    end - start != n * element_bytes(weight.dtype))
		return error_set(-EINVAL, "%s: its bytes do not fit the file or its shape", name);
	weight.n_cols = n_cols;
	weight.n_rows = n_cols ? n / n_cols : 0;
	weight.row_bytes = n_cols * element_bytes(weight.dtype);
	weight.id = (uint64_t)(uintptr_t)(file->data + 8 + head + start);
	*ret_weight = weight;
	return 0;
}

static int files_find(struct weights *weights, const char *name, struct weight *ret_weight)
{
	struct files *files = (struct files *)weights;

	for (size_t i = 0; i < files->n_files; i++) {
		const json_t *item = json_object_get(files->files[i].header, name);

		if (item)
			return describe(files, i, name, item, ret_weight);
	}
	return ENOENT;
}

static int files_acquire(struct weights *weights, const struct weight *weight, uint64_t row,
			 uint64_t n_rows, struct weight_view *ret_view)
{
	ret_view->data = (const uint8_t *)(uintptr_t)weight->id + row * weight->row_bytes;
	ret_view->keep = true;
	return 0;
}

static void files_release(struct weights *weights, struct weight_view *view)
{
	memset(view, 0, sizeof(*view));
}

static int files_read_file(struct weights *weights, const char *name, char **ret_text,
			   size_t *ret_n_bytes)
{
	size_t n_bytes;
	char *text;
	int fd, r;

	r = open_file(((struct files *)weights)->directory, name, &fd, &n_bytes);
	if (r != 0)
		return r;
	text = malloc(n_bytes + 1);
	r = text ? read_whole(fd, text, n_bytes) : -ENOMEM;
	(void)close(fd);
	if (r != 0) {
		free(text);
		return error_set(r, "%s: %s", name, strerror(-r));
	}
	text[n_bytes] = 0;
	*ret_text = text;
	*ret_n_bytes = n_bytes;
	return 0;
}

static void files_close(struct weights *weights)
{
	struct files *files = (struct files *)weights;

	for (size_t i = 0; i < files->n_files; i++) {
		json_decref(files->files[i].header);
		if (files->files[i].mapped)
			(void)munmap(files->files[i].data, files->files[i].n_bytes);
		else
			array_free(files->files[i].data);
	}
	free(files->directory);
	array_free(files);
}

static const struct weights_source copy_source = {
	.name = "copy",
	.find = files_find,
	.acquire = files_acquire,
	.release = files_release,
	.read_file = files_read_file,
	.close = files_close,
};

static const struct weights_source mmap_source = {
	.name = "mmap",
	.find = files_find,
	.acquire = files_acquire,
	.release = files_release,
	.read_file = files_read_file,
	.close = files_close,
};

/* model.safetensors, or the shards model-*.safetensors; other tensors of a directory are none. */
static bool is_model_file(const char *name)
{
	size_t n = strlen(name), n_end = strlen(".safetensors");

	return n > n_end && strncmp(name, "model", 5) == 0 &&
	       strcmp(name + n - n_end, ".safetensors") == 0;
}

static int open_directory(const char *directory, const struct weights_source *source,
			  struct weights **ret_weights)
{
	struct files *files = array_new(1, sizeof(*files));
	struct dirent *entry;
	DIR *stream;
	int r = 0;

	if (!files)
		return error_set(-ENOMEM, "no memory");
	files->head.source = source;
	files->directory = strdup(directory);
	stream = opendir(directory);
	if (!stream || !files->directory) {
		r = error_set(-errno, "%s: %s", directory, strerror(errno));
		files_close(&files->head);
		return r;
	}
	while (r == 0 && (entry = readdir(stream)))
		if (is_model_file(entry->d_name))
			r = files->n_files == MAX_FILES
				    ? error_set(-EINVAL, "%s: too many files", directory)
				    : load_file(files, entry->d_name, source == &mmap_source);
	(void)closedir(stream);
	if (r == 0 && files->n_files == 0)
		r = error_set(-ENOENT, "%s holds no model*.safetensors", directory);
	if (r != 0) {
		files_close(&files->head);
		return r;
	}
	*ret_weights = &files->head;
	return 0;
}

int weights_open_copy(const char *directory, struct weights **ret_weights)
{
	return open_directory(directory, &copy_source, ret_weights);
}

int weights_open_mmap(const char *directory, struct weights **ret_weights)
{
	return open_directory(directory, &mmap_source, ret_weights);
}
